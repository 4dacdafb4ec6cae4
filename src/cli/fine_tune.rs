//! `gridmill convert --fine-tune`.

use std::path::Path;

use super::calibrate::{Heard, cpu};
use super::print;
use crate::convert::fine_tune::{Tuning, fine_tune};
use crate::convert::{self, Options, Report};
use crate::error::{At, Result};
use crate::file::Source;
use crate::model::Model;

/// A folder beside the target that goes away with its content.
pub(super) fn folder_beside(target: &Path) -> Result<tempfile::TempDir> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".gridmill-").tempdir_in(folder).at(target.display())
}

/// Converts beside the target, and writes that once more with other scales and norms.
pub(super) fn convert(
    source: &Source,
    (target, named): (&Path, &Path),
    options: &Options,
    heard: &Heard,
) -> anyhow::Result<Report> {
    let folder = folder_beside(target)?;
    let first = folder.path().join("untuned.gguf");
    let report = super::convert::run(source, (&first, named), options, heard.statistics.as_ref())?;
    let coded = Source::open(&first)?;
    let model = |source: &Source| -> Result<Model> {
        Model::new(source).map_err(|error| error.at(source.path().display()))
    };
    let models = (&model(source)?, &model(&coded)?);
    let mut progress = print::Progress::new("tuning", 2 * heard.windows.len() as u64);
    let mut take = |loss: Option<f64>| {
        progress.add(1);
        if let Some(loss) = loss {
            progress.say(format!("{loss:.3} nats"));
        }
    };
    let tuned = fine_tune(models, &cpu(), &heard.windows, Tuning::default(), &mut take)?;
    drop(progress);
    convert::retune(&coded, target, options, &tuned.factors)?;
    if let Some((before, after)) = tuned.change() {
        print::note(format_args!(
            "tuned: the KL divergence on the calibration text went from {before:.4} to {after:.4}"
        ));
    }
    Ok(report)
}
