// Inputs stay in their places.
fn source_of(place: u32) -> u32 {
    return place;
}
