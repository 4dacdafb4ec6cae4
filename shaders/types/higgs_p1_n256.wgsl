// HIGGS_P1_N256: see formats/higgs.md. A code is the integer itself.

const COLS = 64u;
const GROUP = 32u;
const CHUNK = 32u;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
// import norms

struct Raw {
    lo: vec4<u32>,
    hi: vec4<u32>,
    norms: vec2<u32>,
    // How far up in their words the norms are.
    shifts: vec2<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let word = 2u * (row * (COLS / CHUNK) + chunk);
    let at = norms_at(row, chunk * CHUNK);
    return Raw(
        codes[word],
        codes[word + 1u],
        vec2(norms[at.x / 2u], norms[at.y / 2u]),
        at % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    return Run(raw.lo, raw.hi, norm_scales(raw.norms, raw.shifts), vec2(0.0));
}

fn fill_table(thread: u32, threads: u32) {}
