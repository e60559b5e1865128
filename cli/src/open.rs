//! From a model reference to an open file and a loaded session.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tandem_engine::placement::{GpuLayers, Measure};
use tandem_engine::{LoadOptions, Model, Session};
use tandem_loader::Gguf;
use tandem_models::Program;
use tandem_models::template::ChatTemplate;
use tandem_models::tokenizer::Tokenizer;

use crate::args::ModelArgs;
use crate::exit::Failure;
use crate::fetch::{self, FetchOptions};
use crate::interrupt::Interrupt;
use crate::known;
use crate::placement;
use crate::ui::{FetchProgress, Ui};

/// Loading that takes longer than this shows a bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// Finds (or fetches) the model and opens its header.
pub(crate) fn open(model: &ModelArgs, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<Arc<Gguf>> {
    let mut progress = FetchProgress::new(ui, interrupt);
    let resolved = fetch::resolve(model.reference(), &FetchOptions::from_env(), &mut progress)?;
    if resolved.was_fetched() {
        ui.note(resolved.summary());
    } else {
        ui.detail(resolved.summary());
    }
    Ok(Arc::new(named(Gguf::open(&resolved.path), &resolved.path)?))
}

/// The result, with the file's name before an error that does not give it.
pub(crate) fn named<T>(result: tandem_loader::Result<T>, path: &Path) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        tandem_loader::Error::Metadata { .. } => anyhow::Error::new(error).context(path.display().to_string()),
        _ => error.into(),
    })
}

/// The model's tokenizer.
pub(crate) fn tokenizer(gguf: &Gguf) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_metadata(gguf.metadata()).with_context(|| shown(gguf))
}

/// The model's chat template, where it has one.
///
/// # Errors
/// The file's own is not valid.
pub(crate) fn template(gguf: &Gguf) -> anyhow::Result<Option<ChatTemplate>> {
    ChatTemplate::from_metadata(gguf.metadata())
        .map_err(|error| Failure::model(format!("{}: {error}", gguf.path().display())))
}

/// The file's name, to begin a message with.
pub(crate) fn shown(gguf: &Gguf) -> String {
    gguf.path().display().to_string()
}

/// The result, with the file's name before an error that is about the file. What cannot be placed, a
/// device that fails and a full memory are not.
pub(crate) fn of_file<T>(result: tandem_engine::Result<T>, gguf: &Gguf) -> anyhow::Result<T> {
    use tandem_engine::Error;
    result.map_err(|error| match error {
        Error::Loader(_) | Error::Models(_) => anyhow::Error::new(error).context(shown(gguf)),
        _ => error.into(),
    })
}

/// What turns text into tokens, and tokens into text.
pub(crate) struct Language {
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// The chat template, where it is wanted and the file has one.
    pub(crate) template: Option<ChatTemplate>,
}

/// Loads what text needs. The template only if it is wanted: a broken one does not keep a model from completing text.
pub(crate) fn language(gguf: &Gguf, with_template: bool) -> anyhow::Result<Language> {
    let template = if with_template { template(gguf)? } else { None };
    let tokenizer = tokenizer(gguf)?;
    let n_rows = Program::from_gguf(gguf).with_context(|| shown(gguf))?.hparams.n_vocab;
    if tokenizer.n_vocab() > n_rows {
        let (file, n_tokens) = (shown(gguf), tokenizer.n_vocab());
        return Err(Failure::model(format!(
            "{file}: the tokenizer has {n_tokens} tokens, but the embedding has rows for {n_rows} only"
        )));
    }
    Ok(Language { tokenizer, template })
}

/// Loads weights, for answers: they go on where a GPU fails, unless placement is strict.
pub(crate) fn load(
    gguf: Arc<Gguf>,
    options: &LoadOptions,
    ui: &Ui,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Session> {
    let mut session = load_session(gguf, options, ui, interrupt)?;
    if !options.wanted.strict {
        let ui = *ui;
        session.move_when_a_gpu_fails(Box::new(move |what| ui.warn_amid_text(what)));
    }
    Ok(session)
}

/// Loads weights only, for what works on token ids. Ctrl-C stops its evaluations.
pub(crate) fn load_session(
    gguf: Arc<Gguf>,
    options: &LoadOptions,
    ui: &Ui,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Session> {
    let session = Session::new(load_model(gguf, options, ui, interrupt)?);
    interrupt.watch(session.interrupt())?;
    Ok(session)
}

/// Loads weights, and says where they are.
pub(crate) fn load_model(
    gguf: Arc<Gguf>,
    options: &LoadOptions,
    ui: &Ui,
    interrupt: &Interrupt,
) -> anyhow::Result<Model> {
    let start = Instant::now();
    let mut bar = None;
    let mut progress = |done, total| {
        if bar.is_none() && start.elapsed() > PATIENCE {
            bar = Some(ui.bar("loading", Some(total)));
        }
        if let Some(bar) = &bar {
            bar.set_position(done);
        }
    };
    let mut options = options.clone();
    // Planning asks the drivers, which may take longer than to load a small model.
    if options.wanted.is_auto() && known::only_software(options.cache_folder.as_deref()) {
        options.wanted.layers = GpuLayers::Count(0);
    }
    let model = interrupt.leaving(|| {
        placement::with_speeds(Measure::ToChoose, ui, |speeds| {
            Model::load_with(gguf.clone(), &options, speeds, &mut progress)
        })
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let model = of_file(model, &gguf)?;
    interrupt.check()?;
    describe(&model, ui);
    Ok(model)
}

/// The placement line, and warnings.
fn describe(model: &Model, ui: &Ui) {
    placement::warn(model.plan(), ui);
    placement::describe(model, ui);
    model.warnings().for_each(|warning| ui.warn(format_args!("{warning}")));
    let program = model.program();
    let trained = program.hparams.n_ctx_train;
    if model.n_ctx() > trained {
        ui.warn(format_args!("the model was trained for {trained} tokens; answers get worse beyond them"));
    }
    if !program.unused.is_empty() {
        ui.detail(format_args!("{} tensors of the file are not used: {}", program.unused.len(), program.unused[0]));
    }
}
