//! Exit codes, and how errors map to them.

use std::io;
use std::process::ExitCode;

use tandem_engine::GenerateError;
use tandem_engine::sampler::SamplerError;
use tandem_models::template::TemplateError;
use tandem_models::tokenizer::TokenizerError;

use crate::fetch::FetchError;
use crate::ui::Ui;

/// All is well.
pub(crate) const DONE: u8 = 0;
/// Something failed while running.
pub(crate) const FAILURE: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// The model file cannot be used.
pub(crate) const MODEL: u8 = 3;
/// The model cannot be placed as asked, or not in the memory allowed.
pub(crate) const PLACEMENT: u8 = 4;
/// Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error whose exit code is known where it arises.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// What the user asked for makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
        Failure { code: USAGE, message: message.into() }.into()
    }

    /// The model file cannot be used for this.
    pub(crate) fn model(message: impl Into<String>) -> anyhow::Error {
        Failure { code: MODEL, message: message.into() }.into()
    }

    /// What was checked is not so.
    pub(crate) fn running(message: impl Into<String>) -> anyhow::Error {
        Failure { code: FAILURE, message: message.into() }.into()
    }

    /// Stopped by Ctrl-C; nothing more to say.
    pub(crate) fn interrupted() -> anyhow::Error {
        Failure { code: INTERRUPTED, message: "interrupted".to_owned() }.into()
    }
}

/// Prints what went wrong, if anything did, and gives the exit code.
pub(crate) fn report(ui: &Ui, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::from(DONE) };
    if is_broken_pipe(&error) {
        return ExitCode::from(DONE);
    }
    let code = code_of(&error);
    if code == INTERRUPTED {
        ui.note("interrupted");
    } else {
        ui.error(&error);
    }
    ExitCode::from(code)
}

/// Whether whoever read our output has had enough.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The exit code of the first cause in the chain that has one.
fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(FAILURE)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if let Some(error) = cause.downcast_ref::<FetchError>() {
        return Some(code_of_fetch(error));
    }
    if let Some(error) = cause.downcast_ref::<GenerateError>() {
        return Some(match error {
            GenerateError::Engine(error) => code_of_engine(error),
            GenerateError::EmptyPrompt => USAGE,
            GenerateError::Sampler(_) => FAILURE,
        });
    }
    if let Some(SamplerError::Option { .. }) = cause.downcast_ref::<SamplerError>() {
        return Some(USAGE);
    }
    if let Some(error) = cause.downcast_ref::<tandem_engine::Error>() {
        return Some(code_of_engine(error));
    }
    match cause.downcast_ref::<tandem_loader::Error>() {
        Some(tandem_loader::Error::Write { .. }) => return Some(FAILURE),
        Some(tandem_loader::Error::Exists { .. }) => return Some(USAGE),
        _ => {}
    }
    // The templates of model files that are not even valid; what they refuse at run time is no fault of the file.
    if let Some(error) = cause.downcast_ref::<TemplateError>() {
        let of_file = matches!(error, TemplateError::Metadata(_) | TemplateError::UnknownName { .. });
        return of_file.then_some(MODEL);
    }
    let of_file = cause.is::<tandem_loader::Error>() || cause.is::<tandem_models::Error>();
    (of_file || cause.is::<TokenizerError>()).then_some(MODEL)
}

fn code_of_fetch(error: &FetchError) -> u8 {
    match error {
        FetchError::Interrupted => INTERRUPTED,
        FetchError::NoSuchFile { .. } | FetchError::Unknown { .. } => MODEL,
        FetchError::NotFound { .. } | FetchError::NoGguf { .. } | FetchError::NoQuant { .. } => MODEL,
        FetchError::MissingPart { .. } => MODEL,
        _ => FAILURE,
    }
}

fn code_of_engine(error: &tandem_engine::Error) -> u8 {
    use tandem_engine::Error;
    match error {
        Error::Loader(_) | Error::Models(_) => MODEL,
        Error::OutOfMemory { .. } | Error::Placement(_) => PLACEMENT,
        #[cfg(feature = "gpu")]
        Error::Gpu(error) => code_of_gpu(error),
        Error::Interrupted => INTERRUPTED,
        Error::BadToken { .. } => USAGE,
        Error::ContextFull { .. } | Error::Threads { .. } => FAILURE,
    }
}

#[cfg(feature = "gpu")]
fn code_of_gpu(error: &tandem_engine::gpu::GpuError) -> u8 {
    use tandem_engine::gpu::GpuError;
    match error {
        GpuError::NoAdapter | GpuError::NoSuchAdapter { .. } | GpuError::Unusable { .. } => PLACEMENT,
        GpuError::Open { .. } | GpuError::OutOfMemory { .. } | GpuError::Unsupported { .. } => PLACEMENT,
        GpuError::Lost { .. } | GpuError::Failed { .. } => FAILURE,
    }
}
