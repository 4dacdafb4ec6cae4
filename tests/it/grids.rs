//! The grids' errors, and that the generator still makes them (`UPDATE=1` makes all of them).

use gridmill::quant::grid::{self, IntegerGrid};
use gridmill::types::{HIGGS, Higgs, TensorType};

/// Name, p, n, error of the float grid of the literature, and of the int8 grid at most. Where the
/// literature has no grid (n = 128), the error is that of the generator's float grid.
const GRIDS: [(&str, usize, usize, f64, f64); 10] = [
    ("HIGGS_P1_N16", 1, 16, 0.009_501_0, 0.009_506_3),
    ("HIGGS_P1_N32", 1, 32, 0.002_504_7, 0.002_514_4),
    ("HIGGS_P1_N64", 1, 64, 0.000_644_24, 0.000_656_8),
    ("HIGGS_P2_N16", 2, 16, 0.107_598_6, 0.107_603),
    ("HIGGS_P2_N32", 2, 32, 0.056_965, 0.056_966),
    ("HIGGS_P2_N64", 2, 64, 0.029_603_0, 0.029_576_1),
    ("HIGGS_P2_N128", 2, 128, 0.015_221, 0.015_236),
    ("HIGGS_P2_N256", 2, 256, 0.007_748_3, 0.007_758),
    ("HIGGS_P4_N256", 4, 256, 0.096_49, 0.096_33),
    ("HIGGS_P4_N4096", 4, 4096, 0.025_70, 0.025_55),
];

fn kind(name: &str) -> &'static Higgs {
    HIGGS.iter().find(|kind| kind.name() == name).unwrap()
}

#[test]
fn grids_have_the_errors_they_should() {
    for (name, p, n, _, most) in GRIDS {
        let points = kind(name).table().unwrap().to_vec();
        assert_eq!(points.len(), p * n, "{name}");
        let grid = IntegerGrid { points, unit: f64::from(kind(name).unit()) };
        let error = grid.error(p);
        assert!(error <= most, "{name}: expected an error of at most {most}, found {error}");
    }
}

#[test]
fn lines_are_lloyd_and_maxs() {
    let expected = [(4, 0.117_481_8), (8, 0.034_547_8), (16, 0.009_501_0)];
    for (n, expected) in expected {
        let (float, _) = grid::make(1, n);
        let found = grid::error(1, &float);
        assert!((found - expected).abs() < 1e-7, "{n}: expected {expected}, found {found}");
    }
    let (float, integer) = grid::make(1, 16);
    let published = [0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259];
    for (level, published) in float[8..].iter().zip(published) {
        assert!((level - published).abs() < 1e-5, "expected {published}, found {level}");
    }
    assert_eq!(Some(&integer.points[..]), kind("HIGGS_P1_N16").table());
}

#[test]
fn the_generator_makes_the_grids() {
    if std::env::var_os("UPDATE").is_none() {
        return;
    }
    for (name, p, n, published, _) in GRIDS {
        let (float, integer) = grid::make(p, n);
        let error = grid::error(p, &float);
        let allowed = if p == 4 { 1.003 } else { 1.001 };
        assert!(error <= published * allowed, "{name}: found {error}, published {published}");
        let bytes: Vec<u8> = integer.points.iter().map(|&q| q.cast_unsigned()).collect();
        std::fs::write(format!("src/types/grids/p{p}_n{n}.i8"), bytes).unwrap();
        let unit = kind(name).unit();
        assert!(
            (f64::from(unit) - integer.unit).abs() < 1e-4,
            "{name}: the unit in the source is {unit}, the generator's {}",
            integer.unit
        );
    }
}
