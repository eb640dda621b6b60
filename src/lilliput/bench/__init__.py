"""Measuring a file's speed: alone, op by op, and beside other runtimes in one interleaved run. numpy is enough."""
