//! Chat templates: from a list of messages to the text of a prompt.
//!
//! A model file carries a Jinja template written for Python's jinja2 as Hugging Face transformers sets it up: an
//! immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls, and the functions `raise_exception` and
//! `strftime_now`. This module gives the same text, on the minijinja engine:
//!
//! ```text
//! source -> lexer -> rewrite (operators become calls) -> minijinja -> ops, methods, filters, json -> text
//! ```
//!
//! Templates come from files that nobody vouches for. They read no files and include no others; steps, memory,
//! output and recursion are bounded, and reaching a bound is an error.

mod args;
mod budget;
mod clock;
mod containers;
mod expressions;
mod filters;
mod format;
mod json;
mod lexer;
mod methods;
mod ops;
mod rewrite;
mod strings;
mod text_filters;
mod values;

use std::io;
use std::panic::AssertUnwindSafe;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Rest};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use tandem_loader::Metadata;

/// Metadata key of the template of a model.
const KEY: &str = "tokenizer.chat_template";

/// Instructions that one render may run. The longest templates known take about a thousand per message.
const FUEL: u64 = 20_000_000;

/// Nested macro calls and includes, in the units of minijinja (a macro call counts 4).
const RECURSION: usize = 400;

/// Bytes that a render may put out.
const MAX_OUTPUT: usize = 64 << 20;

/// What a file without a template gets: a line `role: content` per message, then `assistant:`.
const FALLBACK: &str = r#"{%- for message in messages -%}
    {{- message.role }}: {% if message.content is string -%}
        {{- message.content }}
    {%- else -%}
        {%- for part in message.content or [] %}{{ part.text or "" }}{% endfor -%}
    {%- endif %}{{ "\n" }}
{%- endfor -%}
{%- if add_generation_prompt %}assistant:{% endif -%}
"#;

/// What can go wrong with a template. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("chat template, line {line}: {message}")]
    Syntax {
        /// Line of the template.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The template itself refused the conversation, by `raise_exception`.
    #[error("the chat template refuses this conversation (line {line}): {message}")]
    Raised {
        /// Line of the template.
        line: usize,
        /// The template's own message.
        message: String,
    },
    /// The template failed on these values.
    #[error("chat template, line {line}: {message}")]
    Render {
        /// Line of the template.
        line: usize,
        /// What happened.
        message: String,
    },
    /// The template ran too long, built too much text, or nested calls too deeply.
    #[error("chat template, line {line}: stopped: {message}")]
    Limit {
        /// Line of the template, 0 where it is not known.
        line: usize,
        /// Which bound was reached.
        message: String,
    },
    /// The file has templates, but none of this name.
    #[error("the model has no chat template named '{name}'; it has: {known}")]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The template in the metadata is not text.
    #[error("metadata: {0}")]
    Metadata(String),
}

/// The variables of a render.
#[derive(Debug, Clone)]
pub struct RenderContext {
    /// The messages, a JSON array of objects; any fields are passed on, in their order.
    pub messages: serde_json::Value,
    /// Tools as the template expects them (usually a JSON array of schemas); null without.
    pub tools: serde_json::Value,
    /// Documents for retrieval; null without.
    pub documents: serde_json::Value,
    /// Whether the text ends with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Text of the beginning-of-sequence token; undefined in the template if `None`.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token; undefined in the template if `None`.
    pub eos_token: Option<String>,
    /// Further variables; they win over those above.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` formats; the local time of the render if `None`.
    pub now: Option<DateTime>,
}

impl RenderContext {
    /// Messages, a generation prompt, and nothing else.
    pub fn new(messages: serde_json::Value) -> RenderContext {
        RenderContext {
            messages,
            tools: serde_json::Value::Null,
            documents: serde_json::Value::Null,
            add_generation_prompt: true,
            bos_token: None,
            eos_token: None,
            extra: serde_json::Map::new(),
            now: None,
        }
    }

    /// The variables as the template sees them.
    fn variables(&self) -> Result<Value, Error> {
        let mut all = vec![
            ("messages".to_string(), values::from_json(&self.messages)?),
            ("tools".to_string(), values::from_json(&self.tools)?),
            ("documents".to_string(), values::from_json(&self.documents)?),
            ("add_generation_prompt".to_string(), Value::from(self.add_generation_prompt)),
        ];
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                all.push((name.to_string(), Value::from(token.as_str())));
            }
        }
        let now = self.now;
        let strftime_now = move |format: &str| {
            clock::strftime(now.unwrap_or_else(|| jiff::Zoned::now().datetime()), format).map(Value::from)
        };
        all.push(("strftime_now".to_string(), Value::from_function(strftime_now)));
        for (name, value) in &self.extra {
            all.push((name.clone(), values::from_json(value)?));
        }
        Ok(Value::from_pairs(all))
    }
}

/// A chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str) -> Result<ChatTemplate, TemplateError> {
        // As jinja2 reads a template: line ends become "\n", and one at the very end does not count.
        let normalized = source.replace("\r\n", "\n").replace('\r', "\n");
        let rewritten = rewrite::rewrite(normalized.strip_suffix('\n').unwrap_or(&normalized))?;
        let mut env = environment()?;
        env.add_template_owned("chat", rewritten).map_err(|error| match describe(&error) {
            TemplateError::Render { line, message } => TemplateError::Syntax { line, message },
            other => other,
        })?;
        Ok(ChatTemplate { source: source.to_string(), env })
    }

    /// The plain format for files without a template: `role: content` lines, ending in `assistant:`.
    pub fn fallback() -> ChatTemplate {
        ChatTemplate::new(FALLBACK).expect("the built-in template compiles, as its test shows")
    }

    /// The default template of a model, or `None` where the file has none.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<ChatTemplate>, TemplateError> {
        source_in(metadata, KEY)?.map(ChatTemplate::new).transpose()
    }

    /// The template of this name: `default`, or one of [`ChatTemplate::names`], such as `tool_use`.
    pub fn from_metadata_named(metadata: &Metadata, name: &str) -> Result<ChatTemplate, TemplateError> {
        let key = if name == "default" { KEY.to_string() } else { format!("{KEY}.{name}") };
        match source_in(metadata, &key)? {
            Some(source) => ChatTemplate::new(source),
            None => Err(TemplateError::UnknownName { name: name.to_string(), known: Self::names(metadata).join(", ") }),
        }
    }

    /// Names of the templates in a file; the one without a name is `default`.
    pub fn names(metadata: &Metadata) -> Vec<String> {
        let name = |key: &str| match key.strip_prefix(KEY)? {
            "" => Some("default".to_string()),
            rest => rest.strip_prefix('.').map(str::to_string),
        };
        metadata.iter().filter_map(|(key, _)| name(key)).collect()
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation.
    pub fn render(&self, context: &RenderContext) -> Result<String, TemplateError> {
        let template = self.env.get_template("chat").map_err(|error| describe(&error))?;
        budget::start();
        let mut out = Bounded(Vec::new());
        let variables = context.variables().map_err(|error| describe(&error))?;
        // Some of the engine's own functions panic on odd arguments: no reason for the program to end.
        let render = AssertUnwindSafe(|| template.render_captured_to(variables, &mut out).map(|_| ()));
        let rendered = std::panic::catch_unwind(render);
        let failed = |_| TemplateError::Render { line: 0, message: "the template engine failed on it".to_string() };
        rendered.map_err(failed)?.map_err(|error| describe(&error))?;
        String::from_utf8(out.0)
            .map_err(|_| TemplateError::Render { line: 0, message: "the output is not UTF-8".to_string() })
    }
}

fn source_in<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a str>, TemplateError> {
    metadata.str(key).map_err(|error| TemplateError::Metadata(error.to_string()))
}

/// The engine with Python's semantics and the functions that transformers gives to templates.
fn environment() -> Result<Environment<'static>, TemplateError> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
    env.set_syntax(syntax.map_err(|error| describe(&error))?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, _, value| {
        let text = values::to_str(value);
        budget::bytes(text.len())?;
        out.write_str(&text).map_err(Error::from)
    });
    ops::register(&mut env);
    filters::register(&mut env);
    text_filters::register(&mut env);
    env.remove_global("debug");
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let text = values::to_str(&message);
        Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raise(text)))
    });
    env.add_function("joiner", |separator: Option<String>| {
        Value::from_object(Joiner { separator: separator.unwrap_or_else(|| ", ".to_string()), used: false.into() })
    });
    env.add_function("cycler", |items: Rest<Value>| {
        Value::from_object(Cycler { items: items.to_vec(), at: std::sync::atomic::AtomicUsize::new(0) })
    });
    env.add_function("dict", |args: args::Given| {
        let args = args.into_values();
        let (positional, keywords) = args::split_kwargs(&args);
        let first = match positional.first() {
            None => Vec::new(),
            Some(map) if containers::is_dict(map) => values::pairs(map),
            Some(list) => {
                let pair = |item: &Value| match values::items(item)?.as_slice() {
                    [key, value] => Ok((key.clone(), value.clone())),
                    _ => Err(values::fail("dict() needs a sequence of pairs")),
                };
                values::items(list)?.iter().map(pair).collect::<Result<_, Error>>()?
            }
        };
        containers::dict(first.into_iter().chain(keywords))
    });
    Ok(env)
}

/// Marks the error of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raise(String);

/// jinja2's `joiner`: nothing on the first call, the separator on later ones.
#[derive(Debug)]
struct Joiner {
    separator: String,
    used: std::sync::atomic::AtomicBool,
}

impl Object for Joiner {
    fn call(self: &std::sync::Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        let used = self.used.swap(true, std::sync::atomic::Ordering::Relaxed);
        Ok(Value::from(if used { self.separator.as_str() } else { "" }))
    }
}

/// jinja2's `cycler`: its items in turn.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: std::sync::atomic::AtomicUsize,
}

impl Object for Cycler {
    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.at.load(std::sync::atomic::Ordering::Relaxed);
        (key.as_str() == Some("current")).then(|| self.items.get(at % self.items.len().max(1)).cloned())?
    }

    fn call_method(
        self: &std::sync::Arc<Self>,
        _: &mut State<'_, '_>,
        name: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        let at = match name {
            "next" => self.at.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            "reset" => {
                self.at.store(0, std::sync::atomic::Ordering::Relaxed);
                return Ok(Value::from(()));
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        Ok(self.items.get(at % self.items.len().max(1)).cloned().unwrap_or_default())
    }
}

/// Collects output up to a bound.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("the output is longer than {} MiB", MAX_OUTPUT >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The engine's error in our terms: the innermost cause, and its line.
fn describe(error: &Error) -> TemplateError {
    let mut innermost = error;
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(raise) = cause.downcast_ref::<Raise>() {
            return TemplateError::Raised { line: innermost.line().unwrap_or(0), message: raise.0.clone() };
        }
        if let Some(cause) = cause.downcast_ref::<Error>() {
            innermost = cause;
        }
        source = cause.source();
    }
    let line = innermost.line().or(error.line()).unwrap_or(0);
    let detail = innermost.detail().map(str::to_string);
    match innermost.kind() {
        ErrorKind::OutOfFuel => TemplateError::Limit {
            line,
            message: detail.unwrap_or_else(|| "the template does not come to an end".into()),
        },
        ErrorKind::WriteFailure => {
            let cause = std::error::Error::source(innermost).map(ToString::to_string);
            TemplateError::Limit { line, message: cause.unwrap_or_else(|| "the output cannot be written".into()) }
        }
        kind => match detail {
            Some(detail) if detail.contains("recursion limit") => TemplateError::Limit { line, message: detail },
            Some(detail) => TemplateError::Render { line, message: detail },
            None => TemplateError::Render { line, message: kind.to_string() },
        },
    }
}
