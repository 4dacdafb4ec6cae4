//! `gridmill devices` and `gridmill tune`: what could run a model, and how fast its kernels are.

use std::path::PathBuf;

use anyhow::bail;
use serde_json::json;

use super::flags::RunFlags;
use super::print;
use crate::file::Source;
use crate::run::Session;
use crate::run::device::{Listed, list};
use crate::simd::Level;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct TuneArgs {
    /// A GGUF file, or the first shard of one: its matrices are measured
    model: PathBuf,
    #[command(flatten)]
    run: RunFlags,
}

pub(super) fn devices(args: Args) -> anyhow::Result<()> {
    let (gpus, level) = (list(), Level::best());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if args.json {
        let gpu = |(index, gpu): (usize, &Listed)| {
            json!({
                "index": index,
                "name": gpu.name,
                "kind": gpu.kind,
                "backend": gpu.backend,
                "driver": gpu.driver,
                "memory_bytes": gpu.memory_bytes,
                "subgroups": gpu.subgroups.is_some(),
                "subgroup_min": gpu.subgroups.map(|(min, _)| min),
                "subgroup_max": gpu.subgroups.map(|(_, max)| max),
            })
        };
        let gpus: Vec<_> = gpus.iter().enumerate().map(gpu).collect();
        let cpu = json!({ "simd": level.name(), "threads": threads });
        return print::json(&json!({ "gpus": gpus, "cpu": cpu }));
    }
    let head = ["device", "name", "kind", "backend", "driver", "memory", "subgroups"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    for (index, gpu) in gpus.iter().enumerate() {
        rows.push(vec![
            index.to_string(),
            gpu.name.clone(),
            gpu.kind.to_string(),
            gpu.backend.clone(),
            gpu.driver.clone(),
            gpu.memory_bytes.map_or(String::new(), print::megabytes),
            gpu.subgroups.map_or("none".to_string(), subgroups),
        ]);
    }
    rows.push(vec!["cpu".to_string(), format!("{level}, {threads} threads")]);
    print::data(print::table(&rows, &[5]))?;
    if !cfg!(feature = "gpu") {
        print::note("this program was built without GPUs");
    }
    Ok(())
}

fn subgroups((min, max): (u32, u32)) -> String {
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

pub(super) fn tune_model(args: TuneArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let mut session = Session::open(&source, &args.run.options())?;
    session.take_notes().iter().for_each(print::note);
    if !tune(&mut session, true)? {
        bail!("{} has no kernels to tune, expected a GPU", session.device());
    }
    match session.tuning_path() {
        Some(path) => print::line(path.display()),
        None => bail!("there is no cache folder to keep the measurements in"),
    }
}

/// Measures kernels that are new to the device, or all of them `again`, and keeps what is found for
/// the next time; the result is whether there were any.
pub(super) fn tune(session: &mut Session, again: bool) -> anyhow::Result<bool> {
    let mut progress: Option<print::Progress> = None;
    let device = session.device().to_string();
    let is_new = session.tune(again, &mut |done, all| {
        if done < all && progress.is_none() {
            print::note(format_args!("measuring {all} kinds of kernels on {device}, once"));
        }
        let bar = progress.get_or_insert_with(|| print::Progress::new("tuning", all as u64));
        bar.add(u64::from(done > 0));
    })?;
    drop(progress);
    session.take_notes().iter().for_each(print::note);
    Ok(is_new)
}
