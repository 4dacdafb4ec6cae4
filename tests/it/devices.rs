//! Which device runs a model: names, memory, layers on two devices, what is kept about a GPU.

use std::process::{Command, Output};

use gridmill::run::device::choose;

use crate::cli::{fails, json, stderr, stdout, succeeds, text};
use crate::models::model_path;

/// Short runs of a model of seven layers.
const SHORT: [&str; 9] = ["-p", "8", "-n", "2", "-r", "1", "--ctx", "32", "--json"];

fn model() -> String {
    text(&model_path("gemma3.gguf")).to_string()
}

/// The program on a machine without drivers for GPUs.
fn without_drivers(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        command.env(name, "/nowhere.json");
    }
    command.args(args).output().expect("the program starts")
}

#[test]
fn a_name_means_one_adapter() {
    let names = ["Radeon 780M", "GeForce RTX 4070", "GeForce GT 1030"].map(str::to_string);
    let check = |text: &str, expected: Result<usize, &str>| {
        let found = choose(text, &names).map_err(|error| error.to_string());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(expected)) => {
                assert!(found.contains(expected), "{text}: expected {expected:?} in {found:?}");
            }
            (found, expected) => panic!("{text}: expected {expected:?}, found {found:?}"),
        }
    };
    check("gpu", Ok(0));
    check("1", Ok(1));
    check("radeon", Ok(0));
    check("rtx 40", Ok(1));
    check("1030", Ok(2));
    check("geforce", Err("several devices match `geforce`, expected one of 0 (Radeon 780M), 1 ("));
    check("3", Err("no device `3`"));
    check("arc", Err("no device `arc`, expected auto, cpu, gpu, reference, 0 (Radeon 780M), 1 ("));
    let none = choose("gpu", &[]).expect_err("there is none").to_string();
    assert!(none.starts_with("no GPU was found through Vulkan"), "{none}");
    let none = choose("arc", &[]).expect_err("there is none").to_string();
    assert!(none.starts_with("no device `arc`") && none.contains("no GPU was found"), "{none}");
}

#[test]
fn devices_are_listed() {
    let listed = json(&["devices", "--json"]);
    let simd = listed["cpu"]["simd"].as_str().expect("a name");
    assert!(listed["cpu"]["threads"].as_u64().is_some_and(|threads| threads > 0));
    for (index, gpu) in listed["gpus"].as_array().expect("a list").iter().enumerate() {
        assert_eq!(gpu["index"], index);
        for key in ["name", "kind", "backend", "driver"] {
            assert!(gpu[key].is_string(), "{key} of {gpu}");
        }
        assert!(gpu["subgroups"].is_boolean());
        assert!(gpu.get("memory_bytes").is_some());
    }
    let table = succeeds(&["devices"]);
    let line = format!("cpu     {simd}, ");
    assert!(table.lines().any(|found| found.starts_with(&line)), "{table}");
}

#[test]
fn layers_need_a_gpu() {
    let model = model();
    for device in ["cpu", "reference"] {
        let args = ["bench", &model, "--device", device, "--gpu-layers", "2"];
        fails(&args, 1, "expected a GPU for 2 layers, found none");
        let none = ["bench", &model, "--device", device, "--gpu-layers", "0"];
        let device = &json(&[&none[..], &SHORT].concat())["device"];
        assert!(device.is_string(), "{device}");
    }
    fails(&["bench", &model, "--gpu-layers", "most"], 2, "expected a number of layers or auto");
    fails(&["bench", &model, "--gpu-memory", "6XB"], 2, "expected a size such as 6GB");
    fails(&["tune", &model, "--device", "cpu"], 1, "has no kernels to tune");
}

/// Only Vulkan's drivers can be hidden, so this says nothing elsewhere.
#[cfg(target_os = "linux")]
#[test]
fn without_drivers_the_cpu_runs() {
    let model = model();
    let auto = without_drivers(&[&["bench", &model], &SHORT[..]].concat());
    assert_eq!(auto.status.code(), Some(0), "{}", stderr(&auto));
    assert!(stdout(&auto).contains("\"device\": \"cpu ("), "{}", stdout(&auto));
    for name in ["gpu", "0", "radeon"] {
        let output = without_drivers(&["bench", &model, "--device", name]);
        let found = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{found}");
        let expected =
            if cfg!(feature = "gpu") { "no GPU was found" } else { "expected auto, cpu" };
        assert!(found.contains(expected), "{name}: {found}");
    }
    let devices = without_drivers(&["devices"]);
    assert_eq!(stdout(&devices).lines().count(), 2, "a head and the CPU: {}", stdout(&devices));
}

/// The number of a GPU, be it hardware or the CPU in disguise, if this machine has one.
#[cfg(feature = "gpu")]
#[expect(clippy::print_stderr, reason = "a test that shows nothing should say so")]
fn gpu() -> Option<&'static str> {
    let found = !gridmill::run::device::list().is_empty();
    if !found {
        eprintln!("skipped: this machine has no GPU, not even one in software");
    }
    found.then_some("0")
}

#[cfg(feature = "gpu")]
mod with_gpu {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use gridmill::backend::gpu::needed_bytes;
    use gridmill::backend::{Capacity, KvFormat};
    use gridmill::model::Model;
    use gridmill::plan::{Batch, Plan};
    use gridmill::run::verify::verify;
    use gridmill::run::{Device, Options, Session};

    use super::*;
    use crate::cli::gridmill;
    use crate::models::open;
    use crate::scratch::Scratch;

    const CAPACITY: Capacity =
        Capacity { rows: 24, logit_rows: 24, sequences: 2, context: 32, kv: KvFormat::F16 };

    fn plan(name: &str) -> Arc<Plan> {
        Arc::new(Model::new(&open(&model_path(name))).expect("a model of ours").plan())
    }

    fn session(plan: &Arc<Plan>, options: Options) -> gridmill::Result<Session> {
        Session::of_plan(plan.clone(), CAPACITY, &options)
    }

    fn options(layers: Option<usize>, bytes: Option<u64>) -> Options {
        let (threads, gpu_layers, gpu_bytes) = (2, layers, bytes);
        Options { device: Device::Gpu(0), threads, gpu_layers, gpu_bytes, ..Options::default() }
    }

    /// Bytes that the last `layers` of a plan need.
    fn needed(plan: &Plan, layers: usize) -> u64 {
        let start = plan.layers[plan.layers.len() - 1 - layers];
        needed_bytes(plan, CAPACITY, start..plan.ops.len())
    }

    #[test]
    fn layers_on_both_match_the_reference() {
        if gpu().is_none() {
            return;
        }
        for (name, layers) in [("gemma3.gguf", [1, 4, 6]), ("llama-bias.gguf", [1, 1, 2])] {
            let plan = plan(name);
            for layers in layers {
                let mut halves = session(&plan, options(Some(layers), None)).unwrap();
                let reference = Options { device: Device::Reference, ..Options::default() };
                let mut oracle = session(&plan, reference).unwrap();
                for (rows, first) in [(14, 0), (1, 7), (12, 8)] {
                    let mut batch = Batch::default();
                    for row in 0..rows {
                        batch.push(row * 31 % 50, first + row / 2, row % 2, row + 2 >= rows);
                    }
                    let (oracle, halves) = (oracle.backend(), halves.backend());
                    let all = verify(oracle, halves, &batch, &mut |_| ()).unwrap();
                    let bad = all.iter().find(|difference| !difference.is_fine());
                    assert!(bad.is_none(), "{name}, {layers} layers on the GPU: {bad:?}");
                }
            }
        }
    }

    #[test]
    fn as_many_layers_as_fit() {
        if gpu().is_none() {
            return;
        }
        let plan = plan("gemma3.gguf");
        let all = plan.layers.len() - 1;
        for layers in [1, 3, all - 1] {
            let bytes = needed(&plan, layers);
            let mut session = session(&plan, options(None, Some(bytes))).unwrap();
            let notes = session.take_notes().join("\n");
            assert!(notes.contains(&format!(": {layers} of {all} layers")), "{notes}");
            assert!(notes.contains(&format!("the first {} layers", all - layers)), "{notes}");
            assert!(session.device().contains("cpu"), "{}", session.device());
            assert!(session.take_notes().is_empty(), "each is told once");
        }
        let mut whole = session(&plan, options(None, None)).unwrap();
        assert!(whole.take_notes()[0].contains(&format!("{all} of {all} layers")));
        assert!(!whole.device().contains("cpu ("), "{}", whole.device());
    }

    #[test]
    fn layers_that_do_not_fit_are_refused() {
        if gpu().is_none() {
            return;
        }
        let plan = plan("gemma3.gguf");
        let refuse = |layers, bytes| {
            session(&plan, options(layers, Some(bytes))).err().expect("it does not fit")
        };
        let error = refuse(Some(5), needed(&plan, 5) - 1);
        assert!(error.to_string().contains("5 layers need 0."), "{error}");
        assert_eq!(error.hint(), Some("--gpu-layers 4 fits, --ctx reserves less"));
        let error = refuse(None, 1000);
        assert!(error.to_string().contains("1 layer needs 0."), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.starts_with("none fits")));
    }

    #[test]
    fn measurements_are_kept() {
        let Some(gpu) = gpu() else { return };
        let (folder, model) = (Scratch::new(), model_path("llama.gguf"));
        let run = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
            let command = command.env("XDG_CACHE_HOME", &*folder).args(args);
            let output = command.args(["--device", gpu]).output().expect("the program starts");
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            output
        };
        let bench = [&["bench", text(&model)], &SHORT[..]].concat();
        run(&bench);
        let tuned = run(&["tune", text(&model)]);
        let path = stdout(&tuned).trim();
        let kept = fs::read_to_string(path).expect("the file it names");
        let kept: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
        assert!(kept.as_object().is_some_and(|kinds| !kinds.is_empty()), "{kept}");
        let name = path.rsplit(['/', '\\']).next().unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)), "{name}");
        assert!(!stderr(&run(&bench)).contains("note:"), "what is kept makes sense");

        fs::write(path, "{\"half").unwrap();
        let bench = run(&bench);
        assert!(stderr(&bench).contains("kernels are measured again"), "{}", stderr(&bench));
        run(&["tune", text(&model)]);
        let again = fs::read_to_string(path).unwrap();
        let again: serde_json::Value = serde_json::from_str(&again).expect("it was rewritten");
        let kinds = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().expect("by kind").keys().cloned().collect()
        };
        assert_eq!(kinds(&again), kinds(&kept));
        let files = fs::read_dir(folder.join("gridmill").join("tuning")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let is_whole = |name: &String| name.ends_with(".json") || name.ends_with(".pipelines");
        let left: Vec<String> = names.filter(|name| !is_whole(name)).collect();
        assert!(left.is_empty(), "{left:?} are left beside it");

        // What a driver compiled is not believed where its checksum is wrong.
        let compiled = Path::new(path).with_extension("pipelines");
        if compiled.exists() {
            fs::write(&compiled, b"nonsense that is longer than a checksum has bytes").unwrap();
            run(&[&["bench", text(&model)], &SHORT[..]].concat());
        }
    }

    #[test]
    fn verify_compares_two_devices() {
        let Some(gpu) = gpu() else { return };
        let model = model();
        for against in ["cpu", "reference"] {
            let args = ["verify", &model, "--device", gpu, "--against", against, "--rows", "9"];
            assert!(succeeds(&args).contains("every op agrees"), "{against}");
        }
        let output = gridmill(&["verify", &model, "--device", gpu, "--gpu-layers", "3"]);
        assert!(stderr(&output).contains(": 3 of 7 layers"), "{}", stderr(&output));
        assert!(stderr(&output).contains(" with reference"), "{}", stderr(&output));
    }

    #[test]
    fn learned_points_run_on_both() {
        let folder = crate::scratch::Scratch::new();
        let coded = folder.join("coded.gguf");
        succeeds(&["convert", &model(), text(&coded), "--to", "VPTQ_V4_K256_R16"]);
        for device in ["cpu"].into_iter().chain(gpu()) {
            let args = ["verify", text(&coded), "--device", device, "--rows", "9"];
            assert!(succeeds(&args).contains("every op agrees"), "{device}");
        }
    }
}
