"""Operations on adapter files, one per module: load, hotswap, identify, inspect, convert, merge, export, combine."""
