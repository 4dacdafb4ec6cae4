//! `gridmill verify`: two backends side by side, op by op.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;

use super::flags::RunFlags;
use super::print;
use crate::backend::Capacity;
use crate::file::Source;
use crate::model::Model;
use crate::plan::Batch;
use crate::run::verify::{Difference, verify as compare, worst};
use crate::run::{Device, Options, Session};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one
    model: PathBuf,
    /// Rows of the batch
    #[arg(long, default_value_t = 7)]
    rows: usize,
    /// What it is compared with, a device as below
    #[arg(long, value_name = "DEVICE", default_value = "reference")]
    #[arg(value_parser = Device::by_name)]
    against: Device,
    #[command(flatten)]
    run: RunFlags,
}

pub(super) fn verify(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let mut plan = Model::new(&source)?.plan();
    let options = args.run.options();
    options.fit(&mut plan, &source)?;
    let plan = Arc::new(plan);
    let rows = args.rows.max(1);
    let capacity = Capacity { rows, logit_rows: rows, sequences: 2, context: rows, kv: options.kv };
    let oracle = Options { device: args.against, gpu_layers: None, ..options.clone() };
    let mut oracle = Session::of_plan(plan.clone(), capacity, &oracle)?;
    let mut tested = Session::of_plan(plan.clone(), capacity, &options)?;
    tested.take_notes().iter().for_each(print::note);
    let against = oracle.device().to_string();
    print::note(format_args!("comparing {} with {against}", tested.device()));
    let mut progress = print::Progress::new("verifying", plan.ops.len() as u64);
    let batch = batch(rows, plan.slots[plan.logits.0].width);
    let differences =
        compare(oracle.backend(), tested.backend(), &batch, &mut |_| progress.add(1))?;
    drop(progress);
    report(&differences)?;
    match differences.iter().find(|difference| !difference.is_fine()) {
        None => print::line("every op agrees"),
        Some(first) => bail!(
            "op {} ({}): slot `{}` differs from {against} by {:.2e}, expected at most {:.0e}",
            first.op,
            first.name,
            first.slot,
            first.error,
            first.tolerance
        ),
    }
}

/// Two sequences in turn, arbitrary tokens, logits for every row.
fn batch(rows: usize, vocabulary: usize) -> Batch {
    let mut batch = Batch::default();
    for row in 0..rows {
        let token = (row as u64 * 2_654_435_761 + 12345) % vocabulary as u64;
        batch.push(token as u32, (row / 2) as u32, (row % 2) as u32, true);
    }
    batch
}

fn report(differences: &[Difference]) -> anyhow::Result<()> {
    let head = ["op", "slot", "largest difference", "allowed"].map(str::to_string).to_vec();
    let mut rows = vec![head];
    for Difference { name, slot, error, tolerance, .. } in worst(differences) {
        let numbers = [format!("{error:.2e}"), format!("{tolerance:.0e}")];
        rows.push([vec![name.to_string(), slot.to_string()], numbers.to_vec()].concat());
    }
    print::data(print::table(&rows, &[2, 3]))
}
