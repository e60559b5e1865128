//! Writing the files of a plan, some rows at a time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;
use tandem_loader::quantize::{Loss, Method, Recode};
use tandem_loader::{Gguf, TensorSpec, Writer};

use super::plan::{Job, Plan};
use crate::interrupt::Interrupt;
use crate::ui::{self, Ui};

/// Weights encoded between two looks at Ctrl-C, and before their pages are let go: a second or less in most types, and
/// few enough that memory does not grow with the file.
const WEIGHTS_AT_A_TIME: usize = 2 << 20;

/// A tensor that is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) loss: Loss,
    /// The method's name.
    pub(super) method: &'static str,
}

/// The files of a plan, being written: tensors in any order.
pub(super) struct Files<'a> {
    plan: &'a Plan<'a>,
    ui: &'a Ui,
    writers: Vec<Writer>,
    /// By job.
    done: Vec<Option<Done>>,
}

impl<'a> Files<'a> {
    /// Begins all files.
    ///
    /// # Errors
    /// A file that is there already, or cannot be written.
    pub(super) fn create(plan: &'a Plan<'a>, ui: &'a Ui) -> anyhow::Result<Files<'a>> {
        let mut writers = Vec::new();
        for file in &plan.files {
            let spec = |job: &Job<'_>| TensorSpec::like(job.tensor, job.ty);
            let tensors: Vec<TensorSpec> = plan.jobs[file.jobs.clone()].iter().map(spec).collect();
            writers.push(Writer::create(&file.path, &file.metadata, &tensors)?);
        }
        Ok(Files { plan, ui, writers, done: vec![None; plan.jobs.len()] })
    }

    /// The file of a job, at the beginning of its data.
    pub(super) fn select(&mut self, job: usize) -> tandem_loader::Result<&mut Writer> {
        let file = self.plan.files.partition_point(|file| file.jobs.end <= job);
        let writer = &mut self.writers[file];
        writer.select(job - self.plan.files[file].jobs.start)?;
        Ok(writer)
    }

    /// Takes down what became of a job, and tells it.
    pub(super) fn finish(&mut self, job: usize, done: Done, bar: &ProgressBar) {
        self.done[job] = Some(done);
        let Job { tensor, ty, .. } = &self.plan.jobs[job];
        let size = ui::bytes(self.plan.jobs[job].n_bytes());
        bar.suspend(|| match self.plan.jobs[job].changes() {
            true => self.ui.detail(format_args!(
                "{} {:?}: {} -> {ty} ({}), {size}, rmse {:.3e}, {:.1} dB",
                tensor.name,
                tensor.dims(),
                tensor.ty,
                done.method,
                done.loss.rmse(),
                done.loss.sqnr()
            )),
            false => self.ui.detail(format_args!("{} {:?}: {ty}, {size}", tensor.name, tensor.dims())),
        });
    }

    /// Gives the files their names, now that all are whole. Says what became of each job.
    ///
    /// # Errors
    /// A file that cannot be written, or whose name was taken meanwhile.
    pub(super) fn publish(self) -> anyhow::Result<Vec<Done>> {
        let mut written = Vec::new();
        for writer in self.writers {
            written.push(writer.finish()?);
        }
        for file in written {
            file.publish()?;
        }
        // All are whole, so there are no gaps.
        Ok(self.done.into_iter().flatten().collect())
    }
}

/// Writes what is not yet written, each tensor by itself.
///
/// # Errors
/// A weight that cannot be encoded, a file that cannot be written, Ctrl-C.
pub(super) fn write(files: &mut Files<'_>, method: Method, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    interrupt.watch(stop.clone())?;
    let left: Vec<usize> = (0..files.done.len()).filter(|job| files.done[*job].is_none()).collect();
    let n_bytes = left.iter().map(|job| files.plan.jobs[*job].tensor.n_bytes() as u64).sum();
    let bar = ui.bar("quantizing", Some(n_bytes));
    let mut run = Run { gguf: files.plan.gguf, method, interrupt, stop, bar: bar.clone(), done: 0 };
    let result = left.into_iter().try_for_each(|job| {
        let loss = run.tensor(&files.plan.jobs[job], files.select(job)?)?;
        files.finish(job, Done { loss, method: name(method) }, &bar);
        anyhow::Ok(())
    });
    bar.finish_and_clear();
    result
}

/// The name of a method, as `--method` has it.
fn name(method: Method) -> &'static str {
    match method {
        Method::AbsMax => "absmax",
        Method::MinMax => "minmax",
        Method::Search => "search",
    }
}

struct Run<'a> {
    gguf: &'a Gguf,
    method: Method,
    interrupt: &'a Interrupt,
    /// Raised by Ctrl-C.
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    /// Bytes of the input that are done.
    done: u64,
}

impl Run<'_> {
    /// One tensor, matrix by matrix: each may have an importance of its own.
    fn tensor(&mut self, job: &Job<'_>, writer: &mut Writer) -> anyhow::Result<Loss> {
        let tensor = job.tensor;
        self.bar.set_message(tensor.name.clone());
        let recode = if job.changes() { Recode::new(tensor, job.ty, self.method)? } else { Recode::copy(tensor) };
        let (from, to) = recode.row_bytes();
        let rows_per_matrix = tensor.dims().get(1).copied().unwrap_or(1);
        let rows_at_a_time = (WEIGHTS_AT_A_TIME / tensor.row_len()).max(1);
        let mut out = Vec::new();
        let mut loss = Loss::default();
        for (i, matrix) in self.gguf.data(tensor).chunks_exact(rows_per_matrix * from).enumerate() {
            let importance = job.importance(i);
            for (k, rows) in matrix.chunks(rows_at_a_time * from).enumerate() {
                let first = i * rows_per_matrix + k * rows_at_a_time;
                out.resize(rows.len() / from * to, 0);
                loss = loss.and(recode.rows(first, rows, importance, &mut out, &self.stop)?);
                self.interrupt.check()?;
                writer.write(&out)?;
                self.gguf.forget(tensor, first * from..first * from + rows.len());
                self.done += rows.len() as u64;
                self.bar.set_position(self.done);
            }
        }
        Ok(loss)
    }
}
