//! `tandem pull`: fetch a model, or list what is here.

use clap::Args;

use crate::exit::Failure;
use crate::fetch::{self, FetchOptions};
use crate::interrupt::Interrupt;
use crate::ui::{self, FetchProgress, Ui};

/// Options of `tandem pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A name of the catalog, or org/repo[:QUANT] on the Hugging Face hub
    #[arg(value_name = "REF", required_unless_present = "list")]
    reference: Option<String>,
    /// Show the catalog and the models on this machine
    #[arg(long, conflicts_with = "reference")]
    list: bool,
}

/// Fetches, and prints where the file is.
pub(crate) fn run(args: &PullArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
    let Some(reference) = &args.reference else { return list() };
    let mut progress = FetchProgress::new(ui, interrupt);
    let options = FetchOptions { refresh: true, ..FetchOptions::from_env() };
    let resolved = fetch::resolve(reference, &options, &mut progress)?;
    if resolved.origin == fetch::Origin::LocalFile {
        return Err(Failure::usage(format!(
            "{reference} is a file on this machine already: there is nothing to fetch"
        )));
    }
    ui.note(resolved.summary());
    Ok(ui::print(format!("{}\n", resolved.path.display()))?)
}

fn list() -> anyhow::Result<()> {
    let here = fetch::cached(&FetchOptions::from_env());
    let mut text = String::from("Catalog:\n");
    for row in fetch::catalog() {
        let state = if here.iter().any(|model| model.reference == row.alias) { "here" } else { "not fetched" };
        let (alias, title, licence) = (row.alias, row.title, row.licence);
        text += &format!("  {alias:<14} {:>10}  {state:<11}  {title} ({licence})\n", ui::bytes(row.n_bytes));
    }
    text += "On this machine:\n";
    if here.is_empty() {
        text += "  (nothing yet)\n";
    }
    for model in &here {
        text += &format!("  {:<14} {:>10}  {}\n", model.reference, ui::bytes(model.n_bytes), model.path.display());
    }
    Ok(ui::print(text)?)
}
