//! The head: answers of teacher and student, and how they differ, a few rows at a time, since
//! logits are wide.

use std::sync::Arc;

use rayon::prelude::*;

use super::{product, turned};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Capacity, KvFormat, Values};
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Batch, Extent, Format, Plan, Slot, SlotInfo};
use crate::run::Options;
use crate::run::score::log_sum_exp;
use crate::types::Tensor;

/// Rows whose logits are in memory.
const ROWS: usize = 128;

/// The last products of both models.
pub(super) struct Head {
    backend: Cpu,
    soft_cap: Option<f32>,
}

/// Slots of the plan, behind those of a batch.
const LOGITS: Slot = Slot(4);
const HIDDEN: Slot = Slot(5);
const TAUGHT: Slot = Slot(6);
const ANSWERS: Slot = Slot(7);
const SLOPES: Slot = Slot(8);
const BACK: Slot = Slot(9);

/// What a pass over the head found.
pub(super) struct Found {
    /// Summed KL divergence.
    pub(super) loss: f64,
    /// Gradient of its mean by the hidden states, `(rows, embed)`.
    pub(super) d_hidden: Vec<f32>,
}

impl Head {
    /// `student` and `teacher` are plain `(vocabulary, embed)`.
    pub(super) fn new(
        model: &Model,
        options: &Options,
        student: &Tensor,
        teacher: &Tensor,
    ) -> Result<Head> {
        let (vocabulary, embed) = (student.rows, student.cols);
        let slot = |name, width, format| SlotInfo { name, extent: Extent::Tokens, width, format };
        let mut slots = vec![slot("index", 1, Format::U32); 4];
        slots.push(slot("logits", vocabulary, Format::F32));
        let floats = [
            ("hidden", embed),
            ("taught", embed),
            ("answers", vocabulary),
            ("slopes", vocabulary),
            ("back", embed),
        ];
        slots.extend(floats.map(|(name, width)| slot(name, width, Format::F32)));
        let plan = Plan {
            slots,
            weights: vec![student.clone(), teacher.clone(), turned(student, 1)],
            ops: vec![
                product(HIDDEN, 0, LOGITS),
                product(TAUGHT, 1, ANSWERS),
                product(SLOPES, 2, BACK),
            ],
            layers: Vec::new(),
            caches: Vec::new(),
            tokens: Slot(0),
            positions: Slot(1),
            sequences: Slot(2),
            logit_rows: Slot(3),
            logits: LOGITS,
        };
        let capacity = Capacity {
            rows: ROWS,
            logit_rows: ROWS,
            sequences: 1,
            context: ROWS,
            kv: KvFormat::F32,
        };
        let ops = 0..plan.ops.len();
        let backend = Cpu::with_ops(Arc::new(plan), capacity, options.threads, options.level, ops)?;
        Ok(Head { backend, soft_cap: model.hparams.final_soft_cap })
    }

    /// The divergence of the student's answers from the teacher's, and how it changes with what
    /// goes into the head.
    pub(super) fn back(&mut self, hidden: &[f32], taught: &[f32]) -> Result<Found> {
        let embed = self.backend.plan().slots[HIDDEN.0].width;
        let vocabulary = self.backend.plan().slots[ANSWERS.0].width;
        let share = embed as f32 / hidden.len() as f32;
        let mut found = Found { loss: 0.0, d_hidden: Vec::with_capacity(hidden.len()) };
        let pieces = hidden.chunks(ROWS * embed).zip(taught.chunks(ROWS * embed));
        for (hidden, taught) in pieces {
            let mut batch = Batch::default();
            (0..hidden.len() / embed).for_each(|row| batch.push(0, row as u32, 0, true));
            self.backend.load(&batch)?;
            self.backend.write(HIDDEN, &Values::F32(hidden.to_vec()))?;
            self.backend.write(TAUGHT, &Values::F32(taught.to_vec()))?;
            self.backend.run_ops(0..2)?;
            let mut answers = self.backend.read(ANSWERS)?.to_f32();
            let cap = self.soft_cap;
            let rows = self.backend.logits()?.par_chunks_exact_mut(vocabulary);
            let rows = rows.zip(answers.par_chunks_exact_mut(vocabulary));
            let losses: Vec<f64> =
                rows.map(|(logits, answers)| differ(logits, answers, cap, share)).collect();
            found.loss += losses.iter().sum::<f64>();
            self.backend.write(SLOPES, &Values::F32(answers))?;
            self.backend.run_ops(2..3)?;
            found.d_hidden.extend(self.backend.read(BACK)?.to_f32());
        }
        Ok(found)
    }
}

/// The divergence of one row. Logits are capped in place, and `answers`, logits of the teacher,
/// become the slopes by the logits as they were.
fn differ(logits: &mut [f32], answers: &mut [f32], cap: Option<f32>, share: f32) -> f64 {
    if let Some(cap) = cap {
        let all = logits.iter_mut().chain(answers.iter_mut());
        all.for_each(|logit| *logit = cap * (*logit / cap).tanh());
    }
    let (normaliser, taught) = (log_sum_exp(logits) as f32, log_sum_exp(answers) as f32);
    let mut loss = 0.0;
    for (answer, &mut logit) in answers.iter_mut().zip(logits) {
        let (log_p, log_q) = (*answer - taught, logit - normaliser);
        let p = log_p.exp();
        loss += f64::from(p * (log_p - log_q));
        let slope = cap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap));
        *answer = share * (log_q.exp() - p) * slope;
    }
    loss
}
