//! What `tandem quantize` tells: the plan, and what was done.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tandem_loader::quantize::Loss;
use tandem_loader::{GgmlType, TypeClass};

use super::plan::{Job, Plan};
use super::write::Done;
use crate::ui;

/// The plan for people.
pub(super) fn plan_text(plan: &Plan<'_>) -> String {
    let mut out = String::new();
    for job in &plan.jobs {
        let (from, shape, size) = (job.tensor.ty, format!("{:?}", job.tensor.dims()), ui::bytes(job.n_bytes()));
        let to = if job.changes() { job.ty.name() } else { "-" };
        // Writing to a String does not fail.
        let _ = writeln!(out, "{from:<8} {to:<8} {size:>12} {shape:<24} {}", ui::plain(&job.tensor.name));
    }
    let _ = writeln!(out, "{}", sizes(plan));
    out
}

/// The plan for programs.
pub(super) fn plan_json(plan: &Plan<'_>) -> String {
    let tensors: Vec<Json> = plan.jobs.iter().map(tensor_json).collect();
    format!("{:#}\n", with_sizes(plan, json!({ "dry_run": true, "tensors": tensors })))
}

fn sizes(plan: &Plan<'_>) -> String {
    let (before, after) = plan.n_bytes();
    format!("{} -> {}, {:.3} bits per weight", ui::bytes(before), ui::bytes(after), plan.bits_per_weight())
}

fn with_sizes(plan: &Plan<'_>, mut object: Json) -> Json {
    let (before, after) = plan.n_bytes();
    object["input"] = json!(plan.gguf.path());
    object["outputs"] = plan.files.iter().map(|file| json!(file.path)).collect();
    object["type"] = json!(plan.mix.name);
    object["file_type"] = json!(plan.mix.file_type);
    object["n_bytes_before"] = json!(before);
    object["n_bytes"] = json!(after);
    object["bits_per_weight"] = json!(plan.bits_per_weight());
    object
}

fn tensor_json(job: &Job<'_>) -> Json {
    json!({
        "name": job.tensor.name,
        "shape": job.tensor.dims(),
        "from": job.tensor.ty.name(),
        "type": job.ty.name(),
        "instead_of": job.instead_of.map(GgmlType::name),
        "importance": job.importance.is_some(),
        "n_bytes": job.n_bytes(),
    })
}

/// What was done.
pub(super) struct Report<'a> {
    plan: &'a Plan<'a>,
    done: &'a [Done],
    time: Duration,
}

impl<'a> Report<'a> {
    pub(super) fn new(plan: &'a Plan<'a>, done: &'a [Done], time: Duration) -> Report<'a> {
        Report { plan, done, time }
    }

    /// Tensors, bytes and losses of each type, for types that something was made to.
    fn by_type(&self) -> BTreeMap<GgmlType, (usize, u64, Loss)> {
        let mut rows: BTreeMap<GgmlType, (usize, u64, Loss)> = BTreeMap::new();
        for (job, done) in self.plan.jobs.iter().zip(self.done) {
            if job.changes() {
                let row = rows.entry(job.ty).or_default();
                *row = (row.0 + 1, row.1 + job.n_bytes(), row.2.and(done.loss));
            }
        }
        rows
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for (ty, (n, bytes, loss)) in self.by_type() {
            let _ = write!(out, "{ty:<8} {n:>4} tensors {:>12}", ui::bytes(bytes));
            if ty.class() == TypeClass::Quantized {
                let _ = write!(out, "   rmse {:.3e}   signal to noise {:.1} dB", loss.rmse(), loss.sqnr());
            }
            out.push('\n');
        }
        let files: Vec<String> = self.plan.files.iter().map(|file| file.path.display().to_string()).collect();
        let _ = write!(out, "{}, in {}: {}", sizes(self.plan), ui::duration(self.time), files.join(" "));
        out
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let tensor = |(job, done): (&Job<'_>, &Done)| {
            let mut object = tensor_json(job);
            if job.changes() {
                object["method"] = json!(done.method);
                add_loss(&mut object, &done.loss);
            }
            object
        };
        let by_type = |(ty, (n, bytes, loss)): (GgmlType, (usize, u64, Loss))| {
            let mut object = json!({ "type": ty.name(), "n_tensors": n, "n_bytes": bytes });
            add_loss(&mut object, &loss);
            object
        };
        let object = json!({
            "tensors_by_type": self.by_type().into_iter().map(by_type).collect::<Vec<Json>>(),
            "tensors": self.plan.jobs.iter().zip(self.done).map(tensor).collect::<Vec<Json>>(),
            "seconds": self.time.as_secs_f64(),
        });
        format!("{:#}\n", with_sizes(self.plan, object))
    }
}

fn add_loss(object: &mut Json, loss: &Loss) {
    object["rmse"] = json!(loss.rmse());
    object["weighted_rmse"] = json!(loss.weighted_rmse());
    // Infinite without loss: null in JSON.
    object["sqnr_db"] = json!(loss.sqnr());
}
