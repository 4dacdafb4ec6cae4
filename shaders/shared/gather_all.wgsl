fn source_row(t: u32) -> u32 {
    return t;
}
