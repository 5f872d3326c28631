"""What a verification takes in memory, disk and time, before it starts, and how it is kept within what there is.

`machine` says what there is, `sizes` what a case is made of; `activations` and `memory` give the bytes and `cost` the
seconds that follow; `rates` measures this machine, `resources` and `estimate` add it up, `table` prints it. `split` and
`cut` keep a budget.
"""
