//! From a conversation to the tokens of a prompt.
//!
//! A chat template's own control tokens (`<|im_start|>`) must become tokens, and the same texts typed by a user must
//! not: they would let a text end its own message. So every control token's text in a message is replaced by a marker
//! before the template sees it; the rendered text is cut at the control tokens in it (all of them the template's), and
//! the stretches with markers get their text back and are encoded as plain text. That holds for templates that trim,
//! split or repeat a message.

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::json;
use tandem_models::template::{ChatTemplate, RenderContext};
use tandem_models::tokenizer::{EncodeOptions, Tokenizer};

use crate::exit::Failure;

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`.
    pub(crate) role: String,
    /// Its text.
    pub(crate) content: String,
}

impl Message {
    /// A message.
    pub(crate) fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_owned(), content: content.into() }
    }
}

/// The tokens of a text as it is, with the model's BOS in front.
pub(crate) fn plain(tokenizer: &Tokenizer, text: &[u8], parse_special: bool) -> Vec<u32> {
    with_bos(tokenizer, tokenizer.encode(text, EncodeOptions { add_special: false, parse_special }))
}

/// The tokens of a conversation, up to where the assistant's answer begins.
///
/// # Errors
/// The template refuses the conversation, or fails.
pub(crate) fn chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    parse_special: bool,
) -> anyhow::Result<Vec<u32>> {
    if parse_special || !messages.iter().any(|message| has_special(tokenizer, &message.content)) {
        let text = render(tokenizer, template, messages)?;
        return Ok(plain(tokenizer, text.as_bytes(), true));
    }
    let special = SpecialTexts::new(tokenizer)?;
    let mut markers = Markers::new(messages);
    let masked: Vec<Message> =
        messages.iter().map(|m| Message::new(&m.role, markers.mask(&special, &m.content))).collect();
    let text = render(tokenizer, template, &masked)?;
    Ok(with_bos(tokenizer, encode_masked(tokenizer, &special, &markers, &text)))
}

/// A token's text for templates.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: Option<u32>) -> Option<String> {
    id.map(|id| String::from_utf8_lossy(tokenizer.token_text(id)).into_owned())
}

fn render(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Message]) -> anyhow::Result<String> {
    let mut context = RenderContext::new(json!(messages));
    context.bos_token = token_text(tokenizer, tokenizer.bos());
    context.eos_token = token_text(tokenizer, tokenizer.eos());
    Ok(template.render(&context)?)
}

/// Puts BOS in front where the model wants it and the text (a template that writes it) has none.
fn with_bos(tokenizer: &Tokenizer, mut ids: Vec<u32>) -> Vec<u32> {
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos())
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    ids
}

fn has_special(tokenizer: &Tokenizer, text: &str) -> bool {
    let encode = |parse_special| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special });
    encode(true) != encode(false)
}

/// Encodes a rendered text in which the control tokens of messages are markers.
fn encode_masked(tokenizer: &Tokenizer, special: &SpecialTexts<'_>, markers: &Markers, text: &str) -> Vec<u32> {
    let encode =
        |text: &str, parse_special| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special });
    let mut ids = Vec::new();
    // Text of the template and of harmless messages since the last marker, to be encoded as one.
    let mut trusted = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (at, token) = special.find(rest).unwrap_or((rest.len(), ""));
        let stretch = &rest[..at];
        if markers.are_in(stretch) {
            ids.extend(encode(&std::mem::take(&mut trusted), true));
            ids.extend(encode(&markers.unmask(stretch), false));
        } else {
            trusted.push_str(stretch);
        }
        trusted.push_str(token);
        rest = &rest[at + token.len()..];
    }
    ids.extend(encode(&trusted, true));
    ids
}

/// The texts of all control tokens, of which a vocabulary has thousands.
struct SpecialTexts<'a> {
    texts: Vec<&'a str>,
    automaton: AhoCorasick,
}

impl<'a> SpecialTexts<'a> {
    fn new(tokenizer: &'a Tokenizer) -> anyhow::Result<SpecialTexts<'a>> {
        let ids = (0..tokenizer.n_vocab() as u32).filter(|&id| tokenizer.is_special(id));
        let mut texts: Vec<&str> = ids.filter_map(|id| std::str::from_utf8(tokenizer.token_text(id)).ok()).collect();
        texts.retain(|text| !text.is_empty());
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
        let automaton = automaton.map_err(|e| Failure::model(format!("the vocabulary's control tokens: {e}")))?;
        Ok(SpecialTexts { texts, automaton })
    }

    /// The first control token in `text`, the longest of those that begin there.
    fn find(&self, text: &str) -> Option<(usize, &'a str)> {
        let found = self.automaton.find(text)?;
        Some((found.start(), self.texts[found.pattern().as_usize()]))
    }
}

/// Stand-ins for control tokens in messages: a number between two characters that no message has.
struct Markers {
    open: char,
    close: char,
    texts: Vec<String>,
}

impl Markers {
    fn new(messages: &[Message]) -> Markers {
        let is_free = |c: &char| !messages.iter().any(|message| message.content.contains(*c));
        // Private-use characters, of which a text would have to hold 65,534 to leave none.
        let mut free = ('\u{100000}'..='\u{10fffd}').filter(is_free);
        let (open, close) = (free.next().unwrap_or('\u{10fffe}'), free.next().unwrap_or('\u{10ffff}'));
        Markers { open, close, texts: Vec::new() }
    }

    fn mask(&mut self, special: &SpecialTexts<'_>, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((at, token)) = special.find(rest) {
            out.push_str(&rest[..at]);
            out.push_str(&self.marker(self.texts.len()));
            self.texts.push(token.to_owned());
            rest = &rest[at + token.len()..];
        }
        out + rest
    }

    fn marker(&self, no: usize) -> String {
        format!("{}{no}{}", self.open, self.close)
    }

    fn are_in(&self, text: &str) -> bool {
        text.contains(self.open)
    }

    /// The text with control tokens in place of their markers.
    fn unmask(&self, text: &str) -> String {
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        while let Some((before, after)) = rest.split_once(self.open) {
            out.push_str(before);
            let marked = after
                .split_once(self.close)
                .and_then(|(no, later)| Some((self.texts.get(no.parse::<usize>().ok()?)?, later)));
            match marked {
                Some((token, later)) => {
                    out.push_str(token);
                    rest = later;
                }
                // The template has cut it.
                None => {
                    out.push(self.open);
                    rest = after;
                }
            }
        }
        out + rest
    }
}
