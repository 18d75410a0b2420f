"""What each position of each input is: one map per tower, one reader per processor family."""
