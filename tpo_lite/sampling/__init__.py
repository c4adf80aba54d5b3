"""Drawing K outputs for each instruction from M_t."""
