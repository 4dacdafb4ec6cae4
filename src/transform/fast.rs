//! The transforms in an order of memory that the compiler turns into vectors of four, which every
//! target has; the additions, and so the bits, are those of `plain`.
//!
//! Stages at distances below 4 would need shuffles. A square of 4 x 4 values is transposed instead,
//! so that these stages, too, add whole vectors.

type Four = [f32; 4];

/// Values that one call of a Kronecker step keeps in registers.
const LANES: usize = 16;

pub(super) fn sylvester(row: &mut [f32], block: usize) {
    if block < 16 {
        return super::plain::sylvester(row, block);
    }
    row.as_chunks_mut::<16>().0.iter_mut().for_each(run_of_16);
    for run in row.chunks_exact_mut(block) {
        let mut half = 16;
        // Two stages at a time: half the traffic.
        while half * 4 <= block {
            run.chunks_exact_mut(4 * half).for_each(|piece| two_stages(piece, half));
            half *= 4;
        }
        if half < block {
            let (low, high) = run.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

/// The stages at distances `half` and `2 * half` of one run of `4 * half` values.
fn two_stages(run: &mut [f32], half: usize) {
    let (low, high) = run.split_at_mut(2 * half);
    let (a, b) = low.split_at_mut(half);
    let (c, d) = high.split_at_mut(half);
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        let (ab, ba) = (*a + *b, *a - *b);
        let (cd, dc) = (*c + *d, *c - *d);
        (*a, *b, *c, *d) = (ab + cd, ba + dc, ab - cd, ba - dc);
    }
}

/// The stages at distances 1, 2, 4 and 8.
#[inline(always)]
fn run_of_16(run: &mut [f32; 16]) {
    let rows: &mut [Four; 4] = run.as_chunks_mut().0.try_into().expect("16 values");
    let turned = butterflies(transpose(*rows));
    *rows = butterflies(transpose(turned));
}

/// The stages at distances 1 and 2 between four vectors.
#[inline(always)]
fn butterflies([a, b, c, d]: [Four; 4]) -> [Four; 4] {
    let (ab, ba, cd, dc) = (add(a, b), sub(a, b), add(c, d), sub(c, d));
    [add(ab, cd), add(ba, dc), sub(ab, cd), sub(ba, dc)]
}

// Spelled out: closures of `from_fn` are calls where the compiler is short of room.

#[inline(always)]
fn transpose([a, b, c, d]: [Four; 4]) -> [Four; 4] {
    let column = |i: usize| [a[i], b[i], c[i], d[i]];
    [column(0), column(1), column(2), column(3)]
}

#[inline(always)]
fn add(a: Four, b: Four) -> Four {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
}

#[inline(always)]
fn sub(a: Four, b: Four) -> Four {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
}

pub(super) fn kronecker(row: &mut [f32], block: usize, plus: &[Vec<u8>]) {
    if !block.is_multiple_of(LANES) {
        return super::plain::kronecker(row, block, plus);
    }
    // On the stack: an activation is turned for every token.
    let mut values = [[0.0_f32; LANES]; super::ORDER_MAX as usize];
    let values = &mut values[..plus.len()];
    for lane in (0..block).step_by(LANES) {
        for (run, values) in row.chunks_exact(block).zip(&mut *values) {
            values.copy_from_slice(&run[lane..lane + LANES]);
        }
        let total = sum(values[0], &values[1..]);
        for (run, places) in row.chunks_exact_mut(block).zip(plus) {
            let mut sum = values[places[0] as usize];
            for &at in &places[1..] {
                let value = &values[at as usize];
                (0..LANES).for_each(|i| sum[i] += value[i]);
            }
            for i in 0..LANES {
                run[lane + i] = (sum[i] + sum[i]) - total[i];
            }
        }
    }
}

fn sum(first: [f32; LANES], others: &[[f32; LANES]]) -> [f32; LANES] {
    others.iter().fold(first, |mut sum, value| {
        (0..LANES).for_each(|i| sum[i] += value[i]);
        sum
    })
}
