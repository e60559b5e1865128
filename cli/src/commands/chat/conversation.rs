//! The state of a conversation, and one answer of it.

use std::path::Path;

use anyhow::Context;
use tandem_engine::sampler::{SamplerChain, SamplerParams};
use tandem_engine::{GenerateOptions, Generation, Session, StopReason, generate};
use tandem_models::template::ChatTemplate;
use tandem_models::tokenizer::Tokenizer;

use crate::commands::run::{Output, timings};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::open::Language;
use crate::output;
use crate::prompt::{self, Message};
use crate::ui::Ui;

/// A conversation with a model.
pub(super) struct Conversation {
    session: Session,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// The model has no template of its own: text of the fallback ends answers, not a token.
    plain: bool,
    /// How tokens are chosen; `/set` changes it.
    pub(super) params: SamplerParams,
    /// Most tokens of an answer.
    pub(super) max_tokens: usize,
    system: Option<String>,
    /// User and assistant in turn.
    messages: Vec<Message>,
    /// The last answer, for `/stats`.
    last: Option<Generation>,
}

impl Conversation {
    /// An empty one.
    pub(super) fn new(
        session: Session,
        language: Language,
        params: SamplerParams,
        max_tokens: usize,
        system: Option<String>,
        ui: &Ui,
    ) -> anyhow::Result<Conversation> {
        let Language { tokenizer, template } = language;
        // Says now what is wrong with the parameters, not after the first message.
        SamplerChain::new(&params, session.model().program().hparams.n_vocab)?;
        let plain = template.is_none();
        if plain {
            ui.note("this model has no chat template: a plain one is used, and answers may not fit a conversation");
        }
        let template = template.unwrap_or_else(ChatTemplate::fallback);
        Ok(Conversation {
            session,
            tokenizer,
            template,
            plain,
            params,
            max_tokens,
            system,
            messages: Vec::new(),
            last: None,
        })
    }

    /// Asks, and streams the answer. A message that could not be answered at all is taken back.
    pub(super) fn ask(&mut self, text: String, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
        let before = self.messages.len();
        self.messages.push(Message::new("user", text));
        let result = self.answer(ui, interrupt);
        if self.messages.last().is_some_and(|message| message.role == "user") {
            self.messages.truncate(before);
        }
        result
    }

    /// Answers the last question again.
    pub(super) fn regenerate(&mut self, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
        let Some(at) = self.messages.iter().rposition(|message| message.role == "user") else {
            return Err(Failure::usage("there is no message to answer again"));
        };
        let old = self.messages.split_off(at + 1);
        let result = self.answer(ui, interrupt);
        if self.messages.len() == at + 1 {
            self.messages.extend(old);
        }
        result
    }

    fn answer(&mut self, ui: &Ui, interrupt: &Interrupt) -> anyhow::Result<()> {
        let messages = self.all_messages();
        let prompt = interrupt.leaving(|| prompt::chat(&self.tokenizer, &self.template, &messages, false))?;
        let n_ctx = self.session.model().n_ctx();
        if prompt.len() >= n_ctx {
            return Err(Failure::usage(format!(
                "the context is full: the conversation has {} tokens of {n_ctx}. /clear begins a new one; -c gives a \
                 longer context",
                prompt.len()
            )));
        }
        // Anew each time: without a seed of the user's, /regen gives another answer.
        let mut sampler = SamplerChain::new(&self.params, self.session.model().program().hparams.n_vocab)?;
        let stop = if self.plain { vec!["\nuser:".to_owned(), "\nassistant:".to_owned()] } else { Vec::new() };
        let options = GenerateOptions { max_tokens: self.max_tokens, stop, ..GenerateOptions::default() };
        interrupt.clear();
        let mut output = Output::new(true);
        let on_text = &mut |text: &str| output.text(text);
        let answer = generate(&mut self.session, &self.tokenizer, &mut sampler, &prompt, &options, on_text)?;
        output.end()?;
        ui.detail(timings(&answer, None));
        match answer.stop_reason {
            StopReason::Interrupted => ui.note("[stopped]"),
            StopReason::Context => ui.note(format_args!(
                "[the context of {n_ctx} tokens is full; /clear begins a new conversation, -c gives a longer context]"
            )),
            StopReason::Length => ui.note(format_args!("[stopped after {} tokens]", answer.tokens.len())),
            StopReason::Eos | StopReason::Stop => {}
        }
        interrupt.clear();
        if answer.stop_reason != StopReason::Interrupted || !answer.text.is_empty() {
            let text = if self.plain { answer.text.trim() } else { &answer.text };
            self.messages.push(Message::new("assistant", text));
        }
        self.last = Some(answer);
        Ok(())
    }

    fn all_messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Forgets all messages but the system message.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.last = None;
    }

    /// The system message.
    pub(super) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets or removes the system message.
    pub(super) fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Writes the messages as a JSON array, as `tandem template --messages` reads it.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<usize> {
        let messages = self.all_messages();
        let text = serde_json::to_string_pretty(&messages)?;
        output::write(path, |out| Ok(writeln!(out, "{text}")?))?;
        Ok(messages.len())
    }

    /// Replaces the conversation by a saved one.
    pub(super) fn load(&mut self, path: &Path) -> anyhow::Result<usize> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut messages: Vec<Message> = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no conversation (a JSON array of role and content)", path.display()))?;
        let n = messages.len();
        let has_system = messages.first().is_some_and(|message| message.role == "system");
        self.system = has_system.then(|| messages.remove(0).content);
        self.messages = messages;
        self.last = None;
        Ok(n)
    }

    /// The state in words.
    pub(super) fn stats(&self) -> String {
        let (used, n_ctx) = (self.session.tokens().len(), self.session.model().n_ctx());
        let context = format!("context: {used} of {n_ctx} tokens; {} messages", self.messages.len());
        match &self.last {
            None => context,
            Some(answer) => format!(
                "{context}\nlast answer: {}\nprompt of {} tokens, {} of them reused from the KV cache",
                timings(answer, None),
                answer.n_prompt,
                answer.n_reused
            ),
        }
    }
}
