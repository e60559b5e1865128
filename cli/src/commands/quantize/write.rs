//! Writing the files of a plan, some rows at a time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;
use tandem_loader::quantize::{Loss, Method, Recode};
use tandem_loader::{Gguf, TensorSpec, Writer, Written};

use super::plan::{Job, OutFile, Plan};
use crate::interrupt::Interrupt;
use crate::ui::{self, Ui};

/// Weights encoded between two looks at Ctrl-C, and before their pages are let go: a second or less in most types, and
/// few enough that memory does not grow with the file.
const WEIGHTS_AT_A_TIME: usize = 2 << 20;

/// Writes all files; they get their names when all are whole. Gives what each tensor lost.
///
/// # Errors
/// A weight that cannot be encoded, a file that cannot be written, Ctrl-C. Then no file has its name.
pub(super) fn write(plan: &Plan<'_>, method: Method, ui: &Ui, interrupt: &mut Interrupt) -> anyhow::Result<Vec<Loss>> {
    let stop = Arc::new(AtomicBool::new(false));
    interrupt.watch(stop.clone())?;
    let bar = ui.bar("quantizing", Some(plan.n_bytes().0));
    let mut run = Run { gguf: plan.gguf, method, ui, interrupt, stop, bar, done: 0 };
    let mut losses = Vec::with_capacity(plan.jobs.len());
    let mut written = Vec::new();
    let result = plan.files.iter().try_for_each(|file| {
        written.push(run.file(file, &plan.jobs[file.jobs.clone()], &mut losses)?);
        anyhow::Ok(())
    });
    run.bar.finish_and_clear();
    result?;
    for file in written {
        file.publish()?;
    }
    Ok(losses)
}

struct Run<'a> {
    gguf: &'a Gguf,
    method: Method,
    ui: &'a Ui,
    interrupt: &'a Interrupt,
    /// Raised by Ctrl-C.
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    /// Bytes of the input that are done.
    done: u64,
}

impl Run<'_> {
    fn file(&mut self, file: &OutFile, jobs: &[Job<'_>], losses: &mut Vec<Loss>) -> anyhow::Result<Written> {
        let tensors: Vec<TensorSpec> = jobs.iter().map(|job| TensorSpec::like(job.tensor, job.ty)).collect();
        let mut writer = Writer::create(&file.path, &file.metadata, &tensors)?;
        for job in jobs {
            losses.push(self.tensor(job, &mut writer)?);
        }
        Ok(writer.finish()?)
    }

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
                loss = loss.and(recode.rows(first, rows, &importance, &mut out, &self.stop)?);
                self.interrupt.check()?;
                writer.write(&out)?;
                self.gguf.forget(tensor, first * from..first * from + rows.len());
                self.done += rows.len() as u64;
                self.bar.set_position(self.done);
            }
        }
        self.say(job, &loss);
        Ok(loss)
    }

    fn say(&self, job: &Job<'_>, loss: &Loss) {
        let Job { tensor, ty, .. } = job;
        let size = ui::bytes(job.n_bytes());
        self.bar.suspend(|| match job.changes() {
            true => self.ui.detail(format_args!(
                "{} {:?}: {} -> {ty}, {size}, rmse {:.3e}, {:.1} dB",
                tensor.name,
                tensor.dims(),
                tensor.ty,
                loss.rmse(),
                loss.sqnr()
            )),
            false => self.ui.detail(format_args!("{} {:?}: {ty}, {size}", tensor.name, tensor.dims())),
        });
    }
}
