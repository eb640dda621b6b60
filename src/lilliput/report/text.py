"""How numbers are written for people: one spelling for the terminal and the page."""


def count(value: int) -> str:
    """1654824 -> '1,654,824'."""
    return f"{value:,}"


def percent(share: float, digits: int = 2) -> str:
    """0.975 -> '97.50 %'."""
    return f"{share * 100:.{digits}f} %"


def short_bytes(value: float) -> str:
    """220416 -> '220 kB' (decimal units, three significant digits at least)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            amount = value / size
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float) -> str:
    """75.3 -> '1 min 15 s'."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
