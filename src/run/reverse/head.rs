//! The head: answers of teacher and student, and how they differ, a few rows at a time, since
//! logits are wide.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Make, product, put_product, turned};
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
    /// To the answers of both, or of the student alone.
    there: Range<usize>,
    /// From slopes to hidden states.
    back: Range<usize>,
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
    /// `student` is `(vocabulary, embed)`, and so is `teacher`, if there is one; `make` gives the
    /// turned weight another type.
    pub(super) fn new(
        model: &Model,
        options: &Options,
        student: &Tensor,
        teacher: Option<&Tensor>,
        make: Make,
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
        let mut plan = Plan {
            slots,
            weights: Vec::new(),
            ops: Vec::new(),
            layers: Vec::new(),
            caches: Vec::new(),
            tokens: Slot(0),
            positions: Slot(1),
            sequences: Slot(2),
            logit_rows: Slot(3),
            logits: LOGITS,
        };
        let mut put = |from, weight, to| {
            put_product(&mut plan, from, weight, |input, weight| product(input, weight, to))
        };
        let mut there = put(HIDDEN, student.clone(), LOGITS);
        if let Some(teacher) = teacher {
            there.end = put(TAUGHT, teacher.clone(), ANSWERS).end;
        }
        let back = put(SLOPES, make(&turned(student, 1)?)?, BACK);
        let capacity = Capacity {
            rows: ROWS,
            logit_rows: ROWS,
            sequences: 1,
            context: ROWS,
            kv: KvFormat::F32,
        };
        let ops = 0..plan.ops.len();
        let backend = Cpu::with_ops(Arc::new(plan), capacity, options.threads, options.level, ops)?;
        Ok(Head { backend, soft_cap: model.hparams.final_soft_cap, there, back })
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
            self.backend.load(&rows(hidden.len() / embed))?;
            self.backend.write(TAUGHT, &Values::F32(taught.to_vec()))?;
            self.answer(hidden)?;
            let mut answers = self.backend.read(ANSWERS)?.to_f32();
            let cap = self.soft_cap;
            let rows = self.backend.logits()?.par_chunks_exact_mut(vocabulary);
            let rows = rows.zip(answers.par_chunks_exact_mut(vocabulary));
            let losses: Vec<f64> =
                rows.map(|(logits, answers)| differ(logits, answers, cap, share)).collect();
            found.loss += losses.iter().sum::<f64>();
            found.d_hidden.extend(self.turn_back(answers)?);
        }
        Ok(found)
    }

    /// The gradient, by what goes into the head, of the loss of answers that are drawn from the
    /// model's own; and the squares of the logits' gradients, row by row, as they are on average.
    pub(super) fn draw(
        &mut self,
        hidden: &[f32],
        draw: &mut dyn FnMut() -> f64,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let slots = &self.backend.plan().slots;
        let (embed, vocabulary) = (slots[HIDDEN.0].width, slots[LOGITS.0].width);
        let (mut d_hidden, mut squares) = (Vec::with_capacity(hidden.len()), Vec::new());
        for hidden in hidden.chunks(ROWS * embed) {
            self.backend.load(&rows(hidden.len() / embed))?;
            self.answer(hidden)?;
            let mut slopes = self.backend.logits()?.to_vec();
            let places: Vec<f64> = (0..hidden.len() / embed).map(|_| draw()).collect();
            let cap = self.soft_cap;
            let rows = slopes.par_chunks_exact_mut(vocabulary).zip(places);
            squares.extend(rows.map(|(row, place)| drawn(row, place, cap)).collect::<Vec<f32>>());
            d_hidden.extend(self.turn_back(slopes)?);
        }
        Ok((d_hidden, squares))
    }

    /// From hidden states to logits, and from what was taught to answers, if there is a teacher.
    fn answer(&mut self, hidden: &[f32]) -> Result<()> {
        self.backend.write(HIDDEN, &Values::F32(hidden.to_vec()))?;
        self.backend.run_ops(self.there.clone())
    }

    /// From slopes by the logits to those by the hidden states.
    fn turn_back(&mut self, slopes: Vec<f32>) -> Result<Vec<f32>> {
        self.backend.write(SLOPES, &Values::F32(slopes))?;
        self.backend.run_ops(self.back.clone())?;
        Ok(self.backend.read(BACK)?.to_f32())
    }
}

/// A batch of so many rows that all have logits.
fn rows(count: usize) -> Batch {
    let mut batch = Batch::default();
    (0..count).for_each(|row| batch.push(0, row as u32, 0, true));
    batch
}

/// Caps logits.
fn cap_all(logits: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
    }
}

/// How a capped logit changes with what it was before.
fn cap_slope(logit: f32, cap: Option<f32>) -> f32 {
    cap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap))
}

/// Turns the logits of one row into the gradient of the loss of one answer, which is the one that
/// `place`, from 0 to 1, comes to among the probabilities. Returns the mean of the gradient's
/// square over all answers.
fn drawn(row: &mut [f32], place: f64, cap: Option<f32>) -> f32 {
    cap_all(row, cap);
    let normaliser = log_sum_exp(row) as f32;
    let (mut sum, mut square, mut answer) = (0.0, 0.0, None);
    for (at, value) in row.iter_mut().enumerate() {
        let (p, slope) = ((*value - normaliser).exp(), cap_slope(*value, cap));
        sum += f64::from(p);
        square += p * (1.0 - p) * slope * slope;
        *value = p * slope;
        if answer.is_none() && sum > place {
            answer = Some((at, slope));
        }
    }
    if let Some((at, slope)) = answer {
        row[at] -= slope;
    }
    square
}

/// The divergence of one row. Logits are capped in place, and `answers`, logits of the teacher,
/// become the slopes by the logits as they were.
fn differ(logits: &mut [f32], answers: &mut [f32], cap: Option<f32>, share: f32) -> f64 {
    cap_all(logits, cap);
    cap_all(answers, cap);
    let (normaliser, taught) = (log_sum_exp(logits) as f32, log_sum_exp(answers) as f32);
    let mut loss = 0.0;
    for (answer, &mut logit) in answers.iter_mut().zip(logits) {
        let (log_p, log_q) = (*answer - taught, logit - normaliser);
        let p = log_p.exp();
        loss += f64::from(p * (log_p - log_q));
        *answer = share * (log_q.exp() - p) * cap_slope(logit, cap);
    }
    loss
}
