//! Every shader, without a GPU: what is assembled is valid, and can be written for every API.

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use gridmill::backend::gpu::shader::{Choices, KERNELS, Recipe, assemble, shared};
use gridmill::types::{INT8_SHADER, Kernel, Shader, TYPES, by_name};

/// Every type's way of decoding, and the one for types without.
fn types() -> Vec<(&'static str, Shader)> {
    let own = TYPES.iter().filter_map(|kind| Some((kind.name(), kind.shader()?)));
    let learned = [
        "VPTQ_V8_K4096",
        "VPTQ_V6_K4096_R4096",
        "VPTQ_V16_K65536_R65536",
        "VPTQ_V6_K128_S",
        "VPTQ_V8_K2048_S",
        "VPTQ_V16_K256_S",
    ];
    let learned = learned.map(|name| (name, by_name(name).and_then(|kind| kind.shader()).unwrap()));
    let parted = ["RESQ_P2_N256"];
    let parted = parted.map(|name| (name, by_name(name).and_then(|kind| kind.shader()).unwrap()));
    own.chain([("int8", INT8_SHADER)]).chain(learned).chain(parted).collect()
}

/// Every way of turning a row.
const TURNS: [&str; 4] = ["turn_none", "turn_hadamard", "turn_kronecker", "turn_parted"];

/// A section of a matrix of 512 columns.
fn section(shader: &Shader, bias: bool) -> Choices {
    let mut choices = Choices::default()
        .import("type", shader.text)
        .import("bias", shared(if bias { "bias_some" } else { "bias_none" }))
        .import("walk", shared("walk_rows"))
        .set("COLS", 512_usize)
        .set("GROUP", 64_usize)
        .set("COPIES", 2_usize);
    for &(name, value) in shader.constants {
        choices = choices.set(name, value);
    }
    choices
}

fn check(recipe: &Recipe) {
    let shader = assemble(recipe);
    let what = format!("{} {:?}", recipe.kernel, recipe.choices.constants);
    let module = naga::front::wgsl::parse_str(&shader.text)
        .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(&shader.text)));
    // Halves are unpacked to floats, which every desktop API can.
    let capabilities = Capabilities::SUBGROUP
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::SHADER_FLOAT16
        | Capabilities::COOPERATIVE_MATRIX;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    let info = validator
        .validate(&module)
        .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(&shader.text)));
    translate(&module, &info, &what, recipe.kernel != NOT_DX12);
}

/// The kernel for matrix units, which DX12 has no words for.
const NOT_DX12: &str = "mat_mat_f16";

/// Vulkan, Metal and DX12.
fn translate(module: &naga::Module, info: &ModuleInfo, what: &str, everywhere: bool) {
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    let words =
        spv::write_vec(module, info, &options, None).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(!words.is_empty(), "{what}: SPIR-V");
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let (text, _) = msl::write_string(module, info, &options, &Default::default())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(text.contains("kernel void"), "{what}: MSL");
    if !everywhere {
        return;
    }
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_4,
        fake_missing_bindings: true,
        ..Default::default()
    };
    let mut text = String::new();
    let pipeline = hlsl::PipelineOptions::default();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(text.contains("numthreads"), "{what}: HLSL");
}

#[test]
fn matrices_of_every_type_are_valid() {
    for (_, shader) in types() {
        let is_float = shader.chunk == 0;
        let (few, many) =
            if is_float { ("mat_vec_float", "mat_mat_float") } else { ("mat_vec", "mat_mat") };
        let variants = [
            ("reduce_subgroup", "dot_packed", "out_set", "extent_tokens", 1_usize),
            ("reduce_subgroup_fixed", "dot_packed", "out_add", "extent_tokens", 4),
            ("reduce_shared", "dot_float", "out_set", "extent_logit_rows", 8),
        ];
        for (reduce, dot, out, extent, columns) in variants {
            let choices = Choices::default()
                .import("reduce", shared(reduce))
                .import("dot", shared(dot))
                .import("out", shared(out))
                .import("extent", shared(extent))
                .set("COLS", 512_usize)
                .set("COLUMNS", columns);
            let sections = vec![section(&shader, false), section(&shader, true)];
            check(&Recipe { kernel: few, choices: choices.clone(), sections: sections.clone() });
            let choices = Choices { constants: vec![("COLS", 512_usize.into())], ..choices };
            if !is_float {
                let (choices, sections) = (choices.clone(), sections.clone());
                check(&Recipe { kernel: NOT_DX12, choices, sections });
            }
            check(&Recipe { kernel: many, choices, sections });
        }
    }
}

/// Rows that share codes, beside rows that do not.
#[test]
fn walks_of_points_are_valid() {
    for (name, columns) in [
        ("VPTQ_V6_K4096", 1_usize),
        ("VPTQ_V8_K4096_R256", 8),
        ("VPTQ_V6_K128_S", 8),
        ("VPTQ_V8_K2048_S", 1),
    ] {
        let points = by_name(name).and_then(|kind| kind.shader()).unwrap();
        for (reduce, group) in [("reduce_subgroup", 64_usize), ("reduce_shared", 512)] {
            let choices = Choices::default()
                .import("reduce", shared(reduce))
                .import("dot", shared("dot_packed"))
                .import("out", shared("out_add"))
                .import("extent", shared("extent_tokens"))
                .set("COLS", 512_usize)
                .set("COLUMNS", columns);
            let first = Choices { imports: Vec::new(), ..section(&points, true) }
                .import("type", points.text)
                .import("bias", shared("bias_some"))
                .import("walk", shared("walk_points"))
                .set("GROUP", group);
            let sections = vec![first, section(&INT8_SHADER, false)];
            check(&Recipe { kernel: "mat_vec", choices, sections });
        }
    }
}

#[test]
fn matrices_of_experts_of_every_type_are_valid() {
    for (_, shader) in types() {
        let kernel = if shader.chunk == 0 { "expert_mat_vec_float" } else { "expert_mat_vec" };
        for (reduce, dot) in [
            ("reduce_subgroup", "dot_packed"),
            ("reduce_subgroup_fixed", "dot_float"),
            ("reduce_shared", "dot_float"),
        ] {
            let choices = Choices::default()
                .import("reduce", shared(reduce))
                .import("dot", shared(dot))
                .import("out", shared("out_set"))
                .set("COLS", 512_usize);
            let sections = vec![section(&shader, false)];
            check(&Recipe { kernel, choices, sections });
        }
    }
}

#[test]
fn matrices_of_two_types_are_valid() {
    let types = types();
    let integers: Vec<_> = types.iter().filter(|(_, shader)| shader.chunk > 0).collect();
    for pair in integers.windows(2) {
        let choices = Choices::default()
            .import("reduce", shared("reduce_subgroup"))
            .import("dot", shared("dot_packed"))
            .import("out", shared("out_set"))
            .import("extent", shared("extent_tokens"))
            .set("COLS", 512_usize);
        let sections = pair.iter().map(|(_, shader)| section(shader, false)).collect();
        check(&Recipe { kernel: "mat_vec", choices, sections });
    }
}

#[test]
fn embeddings_of_every_type_are_valid() {
    for (_, shader) in types() {
        let sections = vec![section(&shader, false); 2];
        if shader.chunk == 0 {
            let choices = Choices::default();
            check(&Recipe { kernel: "embed_float", choices, sections });
            continue;
        }
        for turn in TURNS {
            let choices = Choices::default()
                .import("line", shared("line_shared"))
                .import("turn", shared(turn))
                .set("SEGMENT", 512_usize);
            let sections = sections.clone();
            check(&Recipe { kernel: "embed", choices, sections });
        }
    }
}

#[test]
fn preparations_are_valid() {
    for input in ["input_rows", "input_gated", "input_splits"] {
        for gather in ["gather_all", "gather_rows"] {
            for norm in ["norm_none", "norm_rms"] {
                for turn in TURNS {
                    for (store, line) in
                        [("store_f32", "line_storage"), ("store_int8", "line_shared")]
                    {
                        let choices = Choices::default()
                            .import("input", shared(input))
                            .import("gather", shared(gather))
                            .import("norm", shared(norm))
                            .import("turn", shared(turn))
                            .import("line", shared(line))
                            .import("store", shared(store));
                        check(&Recipe::new("prepare", choices));
                    }
                }
            }
        }
    }
}

#[test]
fn attention_is_valid() {
    for turn in ["head_own", "head_turned"] {
        check(&Recipe::new("turn_back", Choices::default().import("turn", shared(turn))));
    }
    let codes = ("write_codes", "read_codes");
    for (write, read) in [("write_f16", "read_f16"), ("write_f32", "read_f32"), codes] {
        for (norm, turn) in [(false, "head_own"), (true, "head_turned")] {
            let choices = Choices::default()
                .import("cache", shared(write))
                .import("turn", shared(turn))
                .set("Q_NORM", norm)
                .set("K_NORM", norm);
            check(&Recipe::new("rope", choices));
        }
        for cap in [0.0_f32, 50.0] {
            let choices = Choices::default().import("cache", shared(read)).set("CAP", cap);
            check(&Recipe::new("attend", choices.clone()));
            check(&Recipe::new("attend_tile", choices));
        }
    }
}

#[test]
fn the_other_kernels_are_valid() {
    let choices = |name: &str| match name {
        "top" => vec!["candidates_logits", "candidates_kept"],
        _ => vec![""],
    };
    let others = [
        "add_norm",
        "angles",
        "combine",
        "halves",
        "mix",
        "route",
        "sample",
        "sample_peaks",
        "soft_cap",
        "top",
    ];
    for name in others {
        for candidates in choices(name) {
            let mut choices = Choices::default();
            if !candidates.is_empty() {
                choices = choices.import("candidates", shared(candidates));
            }
            check(&Recipe::new(name, choices));
        }
    }
    let tested_above = ["attend", "attend_tile", "embed", "embed_float", "mat_mat", NOT_DX12];
    let tested_above = tested_above.iter().chain(&["mat_mat_float", "mat_vec", "mat_vec_float"]);
    let tested_above = tested_above.chain(&["expert_mat_vec", "expert_mat_vec_float"]);
    let known: Vec<&str> =
        tested_above.chain(&["prepare", "rope", "turn_back"]).chain(&others).copied().collect();
    for (name, _) in KERNELS {
        assert!(known.contains(name), "no test validates {name}");
    }
}

/// A shader that is wrong must be found wrong, or the tests above prove nothing.
#[test]
#[should_panic(expected = "no kernel")]
fn unknown_kernels_are_found() {
    assemble(&Recipe::new("nonsense", Choices::default()));
}

#[test]
fn types_without_shader_are_integers() {
    for kind in TYPES.iter().filter(|kind| kind.shader().is_none()) {
        let is_int8 = matches!(kind.kernel(), Kernel::Int8 { .. });
        assert!(is_int8, "{}: floats need a shader, integers can be transcoded", kind.name());
    }
}
