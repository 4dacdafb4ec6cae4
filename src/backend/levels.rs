//! Activations of 4 and 8 bits with a scale per token, as the paper of ResQ has them: they show
//! what its setting costs, and save nothing. Page: `formats/activations.md`.

/// Levels of a coarse value, less one.
const STEPS: f32 = 15.0;

/// Codes of a row whose first `coarse` values have 16 levels; returns the scales of its two parts.
pub(super) fn levels(row: &[f32], coarse: usize, codes: &mut [i8]) -> [f32; 2] {
    let (low, high) = row.split_at(coarse);
    let (low_codes, high_codes) = codes.split_at_mut(coarse);
    [coarse_codes(low, low_codes), fine_codes(high, high_codes)]
}

/// Levels from the least value to the largest, zero among them; a code is less that of zero.
fn coarse_codes(values: &[f32], codes: &mut [i8]) -> f32 {
    let (least, largest) = (values.iter().copied().fold(0.0, f32::min), peak(values, |x| x));
    let range = largest - least;
    let inverse = STEPS / range;
    if !inverse.is_finite() {
        codes.fill(0);
        return 0.0;
    }
    let zero = (-least * inverse).round_ties_even();
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).round_ties_even().clamp(-zero, STEPS - zero) as i8;
    }
    range / STEPS
}

fn fine_codes(values: &[f32], codes: &mut [i8]) -> f32 {
    let peak = peak(values, f32::abs);
    let inverse = if peak == 0.0 { 0.0 } else { 127.0 / peak };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).clamp(-127.0, 127.0).round_ties_even() as i8;
    }
    peak / 127.0
}

fn peak(values: &[f32], size: fn(f32) -> f32) -> f32 {
    values.iter().fold(0.0, |peak, &value| peak.max(size(value)))
}
