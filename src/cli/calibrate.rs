//! The text that a conversion listens to, and where what it hears is kept.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::print;
use crate::convert::{self, Statistics};
use crate::error::{At, Result};
use crate::file::{Source, cache};
use crate::model::Model;
use crate::run::score::Windows;
use crate::run::tokenizer::tokenizer;
use crate::run::{Device, Options};

/// Tokens of a window.
const WINDOW: usize = 512;

#[derive(clap::Args)]
pub(super) struct CalibrationFlags {
    /// What to calibrate on: a text file, self (the model writes the text), or none
    #[arg(long, value_name = "FILE|self|none", default_value = "none", value_parser = Calibration::by_name)]
    calibrate: Calibration,
    /// Windows of 512 tokens to calibrate on
    #[arg(long, value_name = "N", default_value_t = 64)]
    calibration_windows: usize,
}

/// What `--calibrate` says.
#[derive(Clone)]
enum Calibration {
    None,
    Own,
    File(PathBuf),
}

impl Calibration {
    fn by_name(name: &str) -> Result<Calibration, std::convert::Infallible> {
        Ok(match name {
            "none" => Calibration::None,
            "self" => Calibration::Own,
            path => Calibration::File(PathBuf::from(path)),
        })
    }
}

impl CalibrationFlags {
    /// The statistics of the text, from the cache beside the model, or collected now.
    pub(super) fn statistics(&self, source: &Source) -> anyhow::Result<Option<Statistics>> {
        let Calibration::File(path) = &self.calibrate else { return Ok(None) };
        let text = super::read_text(path)?;
        let tokenizer = tokenizer(source)?;
        let windows = Windows::new(&tokenizer, &text, WINDOW, Some(self.calibration_windows))
            .at(path.display())?;
        let windows: Vec<Vec<u32>> = windows.inputs().collect();
        let fingerprint = fingerprint(source, &windows)?;
        let kept = kept_at(source.path(), &fingerprint);
        if kept.exists() {
            let statistics = Statistics::open(&kept)?;
            if statistics.fingerprint == fingerprint {
                return Ok(Some(statistics));
            }
        }
        let model = Model::new(source).at(source.path().display())?;
        let mut progress = print::Progress::new("calibrating", 1);
        let folder = kept.parent().unwrap_or(Path::new("."));
        let options = Options { device: Device::Cpu, ..Options::default() };
        let mut before = 0;
        let statistics = convert::calibrate(
            &model,
            &options,
            &windows,
            fingerprint,
            folder,
            &mut |done, of| {
                progress.set_total(of as u64);
                progress.add((done - before) as u64);
                before = done;
            },
        )?;
        statistics.save(&kept)?;
        Ok(Some(statistics))
    }
}

/// Says which model and tokens statistics are from.
fn fingerprint(source: &Source, windows: &[Vec<u32>]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in source.shard_paths() {
        hash.update(cache::sha256(path, &mut |_, _| ())?);
    }
    for window in windows {
        hash.update(bytemuck::cast_slice(window));
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// `model.gguf` to `model.0123456789abcdef.statistics.gguf`.
fn kept_at(model: &Path, fingerprint: &str) -> PathBuf {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    model.with_file_name(format!("{stem}.{fingerprint}.statistics.gguf"))
}
