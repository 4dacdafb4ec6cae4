//! The HIGGS types: packing, search, scales, and the error of what they code.

use gridmill::quant::presets;
use gridmill::types::{
    Basis, Bytes, ColumnPlanes, HIGGS, Higgs, Int8Row, Rows, SUB, Tensor, TensorType, norm_bytes,
};

/// Standard normal numbers.
fn normal(len: usize, mut state: u64) -> Vec<f32> {
    let mut unit = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 + 0.5) / f64::from(1 << 24)
    };
    let mut next = || (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
    (0..len).map(|_| next() as f32).collect()
}

/// Codes rows and decodes them.
fn round(kind: &Higgs, values: &[f32], cols: usize, group: usize) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let count = values.len() / cols;
    let mut codes = vec![0; count * kind.row_bytes(cols).unwrap()];
    let mut norms = vec![0; count * cols / group * 2];
    kind.encode(values, cols, group, &mut codes, &mut norms);
    let mut decoded = vec![0.0; values.len()];
    let table = kind.table().unwrap_or_default();
    let rows = Rows { group, norms: &norms, table, ..Rows::stock(count, cols, &codes) };
    kind.decode(&rows, &mut decoded);
    (codes, norms, decoded)
}

fn error(values: &[f32], decoded: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let lost: f64 = values.iter().zip(decoded).map(|(a, b)| square(a - b)).sum();
    lost / values.iter().map(|&x| square(x)).sum::<f64>()
}

#[test]
fn blocks_divide_the_widths_that_occur() {
    for kind in HIGGS {
        for cols in [576, 640, 896, 960, 1536, 4864, 8960, 18944] {
            let bits = kind.bits() * cols / kind.values_per_code();
            assert_eq!(kind.row_bytes(cols), Some(bits / 8), "{} of {cols}", kind.name());
        }
        // The code of the last one is the integer itself.
        let has_table = (kind.values_per_code(), kind.bits()) != (1, 8);
        let len = kind.values_per_code() << kind.bits();
        assert_eq!(kind.table().map(<[i8]>::len), has_table.then_some(len), "{}", kind.name());
    }
}

#[test]
fn codes_survive_packing() {
    for kind in HIGGS {
        let codes: Vec<u16> =
            (0..96_usize).map(|i| (i * i * 37 + i) as u16 & ((1 << kind.bits()) - 1)).collect();
        let mut bytes = vec![0xff; 96 * kind.bits() / 8];
        kind.pack(&codes, &mut bytes);
        let mut back = vec![0; 96];
        kind.unpack_codes(&bytes, &mut back);
        assert_eq!(back, codes, "{}", kind.name());
    }
}

#[test]
fn the_search_is_the_full_scan() {
    for kind in HIGGS {
        let p = kind.values_per_code();
        let search = kind.search();
        let check = |place: &[f32]| {
            assert_eq!(search.nearest(place), search.scan(place), "{} at {place:?}", kind.name());
        };
        normal(20_000 * p, 9)
            .chunks(p)
            .for_each(|x| check(&x.iter().map(|x| x * 50.0).collect::<Vec<_>>()));
        // Places in the middle of two points, where only the order decides, and the corners.
        let Some(table) = kind.table() else { continue };
        for pair in table.chunks(p).collect::<Vec<_>>().windows(2) {
            let middle = |(a, b): (&i8, &i8)| (f32::from(*a) + f32::from(*b)) / 2.0;
            check(&pair[0].iter().zip(pair[1]).map(middle).collect::<Vec<_>>());
        }
        for x in [-1e4, -193.0, -192.0, -128.0, -0.5, 0.0, 0.5, 127.999, 128.0, 192.0, 1e4] {
            check(&vec![x; p]);
        }
    }
}

#[test]
fn normal_values_lose_what_the_grid_loses() {
    let values = normal(64 * 1536, 1);
    let check = |name: &str, group: usize, most: f64| {
        let kind = HIGGS.iter().find(|kind| kind.name() == name).unwrap();
        let (_, _, decoded) = round(kind, &values, 1536, group);
        let error = error(&values, &decoded);
        assert!(error < most, "{name}, group {group}: expected below {most}, found {error}");
        assert!(error > most * 0.75, "{name}, group {group}: {error} is too good to be true");
    };
    check("HIGGS_P1_N16", 64, 0.007_1);
    check("HIGGS_P1_N32", 64, 0.002);
    check("HIGGS_P1_N64", 64, 0.000_47);
    check("HIGGS_P1_N256", 64, 3.6e-5);
    check("HIGGS_P2_N16", 64, 0.1018);
    check("HIGGS_P2_N32", 64, 0.0519);
    check("HIGGS_P2_N64", 64, 0.0257);
    check("HIGGS_P2_N128", 64, 0.0127);
    check("HIGGS_P2_N256", 64, 0.0062);
    check("HIGGS_P2_N256", 1536, 0.007_748_3);
    check("HIGGS_P4_N256", 64, 0.0912);
    check("HIGGS_P4_N4096", 64, 0.0235);
}

#[test]
fn hard_groups_are_coded() {
    for kind in HIGGS {
        let name = kind.name();
        let mut values = normal(10 * 64, 4);
        values[..64].fill(0.0);
        let factors = [1e-5, 1e5, 1e-30, 1e37, 1e-7];
        for (group, factor) in values[64..].chunks_mut(64).zip(factors) {
            group.iter_mut().for_each(|x| *x *= factor);
        }
        values[384] = 1e3;
        values[448..512].fill(1.0);
        values[512..576].fill(-0.0);
        let (codes, norms, decoded) = round(kind, &values, 640, 64);
        assert!(decoded.iter().all(|x| x.is_finite()), "{name}");
        assert!(decoded[..64].iter().all(|&x| x == 0.0), "{name}: zeros stay zeros");
        assert_eq!(norms[..2], [0, 0], "{name}");
        assert_eq!(norms[6..8], [0, 0], "{name}: 1e-30 is zero in half precision");
        let lost = error(&values[64..192], &decoded[64..192]);
        assert!(lost < 0.12, "{name}: small and large scales lose {lost}");
        // The last row length has its own codes: the same values again give the same bytes.
        assert_eq!(round(kind, &values, 640, 64).0, codes, "{name}");
    }
}

#[test]
fn integers_are_the_decoded_values() {
    for kind in HIGGS {
        for group in [16, 64, 320] {
            let values = normal(640, 8);
            let (codes, norms, decoded) = round(kind, &values, 640, group);
            let row = Rows { group, norms: &norms, ..Rows::stock(1, 640, &codes) };
            let (mut integers, mut scales) = (vec![0; 640], vec![0.0; 640 / SUB]);
            let mut out = Int8Row { values: &mut integers, scales: &mut scales, mins: &mut [] };
            kind.unpack(&row, &mut out);
            for i in 0..640 {
                let value = scales[i / SUB] * f32::from(integers[i]);
                assert_eq!(value, decoded[i], "{}, group {group}: {i}", kind.name());
                assert!(integers[i] != i8::MIN, "{}: {i}", kind.name());
            }
        }
    }
}

#[test]
fn any_bytes_decode() {
    for kind in HIGGS {
        let mut codes: Vec<u8> = (0..kind.row_bytes(256).unwrap()).map(|i| i as u8).collect();
        if kind.table().is_none() {
            codes.fill(0x81);
        }
        let table = vec![i8::MIN; kind.table().map_or(0, <[i8]>::len)];
        let rows = Rows {
            count: 1,
            cols: 256,
            group: 256,
            codes: &codes,
            norms: &[0, 0x3c],
            table: &table,
            ..Rows::stock(0, 0, &[])
        };
        let mut out = vec![0.0; 256];
        kind.decode(&rows, &mut out);
        assert_eq!(out, vec![-127.0; 256], "{}: -128 reads as -127", kind.name());
    }
}

#[test]
fn presets_name_types() {
    let names = ["higgs2", "higgs3", "HIGGS4", "higgs8", "higgs_p2_n16"];
    let found: Vec<_> = names.iter().map(|name| presets::by_name(name).unwrap().name()).collect();
    let expected =
        ["HIGGS_P4_N256", "HIGGS_P2_N64", "HIGGS_P2_N256", "HIGGS_P1_N256", "HIGGS_P2_N16"];
    assert_eq!(found, expected);
    let error = presets::by_name("higgs5").err().unwrap().to_string();
    assert!(error.starts_with("expected one of higgs2, higgs3"), "{error}");
    assert!(error.ends_with("found `higgs5`"), "{error}");
}

/// Grids without kernels of their own are held in bytes, and mean the same to the bit.
#[test]
fn weights_in_bytes_are_the_same_weights() {
    for grid in HIGGS {
        let values: Vec<f32> =
            (0..3 * 192).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
        let mut codes = vec![0; 3 * grid.row_bytes(192).unwrap()];
        let mut norms = vec![0; 3 * norm_bytes(192, 64)];
        grid.encode(&values, 192, 64, &mut codes, &mut norms);
        let table = grid.table().map(|table| bytemuck::cast_slice(table).to_vec());
        let weight = Tensor {
            name: grid.name().to_string(),
            kind: *grid,
            rows: 3,
            cols: 192,
            first: 0,
            basis: Basis::Original,
            group: 64,
            codes: Bytes::from(codes),
            norms: Bytes::from(norms),
            table: Bytes::from(table.unwrap_or_default()),
            signs: Bytes::empty(),
            columns: ColumnPlanes::default(),
        };
        let Some(bytes) = grid.in_bytes(&weight) else { continue };
        assert!(bytes.kind.in_bytes(&bytes).is_none(), "{}: once is enough", grid.name());
        let decoded = |tensor: &Tensor| {
            let mut values = vec![0.0; tensor.len()];
            tensor.kind.decode(&tensor.rows(0..3), &mut values);
            values
        };
        assert!(decoded(&weight) == decoded(&bytes), "{}", grid.name());
    }
}
