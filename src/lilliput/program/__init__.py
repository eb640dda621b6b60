"""The waist: a plain numpy description of exactly what the device executes (docs/format.md, section 1).

`program` holds the records, `validation` their rules, `ops` the closed table of operations, `op_functions` what each
computes; `reference` runs a program, `builder` makes one, `plan` lays its buffers out, `cost` counts; `formats` and
`mathfn` are the numbers underneath.
"""
