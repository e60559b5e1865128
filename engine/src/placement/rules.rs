//! The rules of `--place`: `attn=gpu, ffn.0-11=cpu, experts=cpu, output=gpu`.
//!
//! ```text
//! rules  = rule { "," rule }
//! rule   = part [ "." N [ "-" M ] ] "=" device
//! part   = "attn" | "ffn" | "experts" | "layers" | "embed" | "output"
//! device = "cpu" | "gpu"
//! ```
//!
//! Spaces may stand anywhere between words and signs. A later rule overrides an earlier one.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use tandem_models::{Block, BlockKind, Program};

use super::Device;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Attention halves.
    Attn,
    /// Feed-forward halves.
    Ffn,
    /// Feed-forward halves that choose among experts.
    Experts,
    /// Both halves.
    Layers,
    /// The embedding.
    Embed,
    /// The output head.
    Output,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 6] = [Part::Attn, Part::Ffn, Part::Experts, Part::Layers, Part::Embed, Part::Output];

    /// Its name in a rule.
    pub fn name(self) -> &'static str {
        match self {
            Part::Attn => "attn",
            Part::Ffn => "ffn",
            Part::Experts => "experts",
            Part::Layers => "layers",
            Part::Embed => "embed",
            Part::Output => "output",
        }
    }

    /// Whether every layer has one.
    fn is_of_a_layer(self) -> bool {
        match self {
            Part::Attn | Part::Ffn | Part::Experts | Part::Layers => true,
            Part::Embed | Part::Output => false,
        }
    }

    /// The layer of a block that is of this part; `Some(None)` for the blocks that are in no layer.
    fn layer_of(self, block: &Block) -> Option<Option<usize>> {
        match (self, block.kind) {
            (Part::Attn | Part::Layers, BlockKind::Attention(layer)) => Some(Some(layer)),
            (Part::Ffn | Part::Layers, BlockKind::FeedForward(layer)) => Some(Some(layer)),
            (Part::Experts, BlockKind::FeedForward(layer)) => block.has_experts().then_some(Some(layer)),
            (Part::Embed, BlockKind::Embed) | (Part::Output, BlockKind::Head) => Some(None),
            (_, BlockKind::Embed | BlockKind::Attention(_) | BlockKind::FeedForward(_) | BlockKind::Head) => None,
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it is about.
    pub part: Part,
    /// Of which layers; of all without.
    pub layers: Option<RangeInclusive<usize>>,
    /// Where it goes.
    pub device: Device,
}

impl Rule {
    /// The experts of all layers on the CPU: what `--cpu-moe` is short for.
    pub fn cpu_moe() -> Rule {
        Rule { part: Part::Experts, layers: None, device: Device::Cpu }
    }

    pub(super) fn applies_to(&self, block: &Block) -> bool {
        match (self.part.layer_of(block), &self.layers) {
            (None, _) => false,
            (Some(Some(layer)), Some(layers)) => layers.contains(&layer),
            (Some(_), None) => true,
            (Some(None), Some(_)) => false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.part.name())?;
        match &self.layers {
            Some(layers) if layers.start() == layers.end() => write!(f, ".{}", layers.start())?,
            Some(layers) => write!(f, ".{}-{}", layers.start(), layers.end())?,
            None => {}
        }
        write!(f, "={}", self.device.name().to_ascii_lowercase())
    }
}

/// Rules, in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Changes the devices of the blocks that rules are about; `devices` has one entry per block.
    ///
    /// # Errors
    /// In words: a rule about layers that the program does not have.
    pub fn apply(&self, program: &Program, devices: &mut [Device]) -> Result<(), String> {
        let n_layer = program.hparams.n_layer;
        for rule in &self.0 {
            if rule.layers.as_ref().is_some_and(|layers| *layers.end() >= n_layer) {
                return Err(format!("`{rule}`: the model has {n_layer} layers, 0 to {}", n_layer - 1));
            }
            for (block, device) in program.blocks.iter().zip(devices.iter_mut()) {
                if rule.applies_to(block) {
                    *device = rule.device;
                }
            }
        }
        Ok(())
    }

    /// Whether a rule puts something on `device`.
    pub fn ask_for(&self, device: Device) -> bool {
        self.0.iter().any(|rule| rule.device == device)
    }

    /// Whether no block of the program is what a rule is about: the rule says nothing.
    pub fn idle<'a>(&'a self, program: &'a Program) -> impl Iterator<Item = &'a Rule> {
        self.0.iter().filter(|rule| !program.blocks.iter().any(|block| rule.applies_to(block)))
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.0.iter().enumerate() {
            write!(f, "{}{rule}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// What is wrong with the text of rules, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {}: {message}", .at + 1)]
pub struct RulesError {
    /// Characters before it.
    pub at: usize,
    /// What is wrong.
    pub message: String,
}

impl FromStr for Rules {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Rules, RulesError> {
        let mut parser = Parser { chars: text.chars().collect(), at: 0 };
        let mut rules = vec![parser.rule()?];
        while parser.sign(',') {
            rules.push(parser.rule()?);
        }
        parser.end()?;
        Ok(Rules(rules))
    }
}

/// Reads the text from left to right.
struct Parser {
    chars: Vec<char>,
    at: usize,
}

impl Parser {
    fn rule(&mut self) -> Result<Rule, RulesError> {
        let names = Part::ALL.map(Part::name).join(", ");
        let (at, word) = self.word();
        let part = Part::ALL.into_iter().find(|part| part.name() == word);
        let part = part.ok_or_else(|| unknown(at, &word, &format!("a part ({names})")))?;
        let dot = self.at;
        let layers = if self.sign('.') { Some(self.layers()?) } else { None };
        if layers.is_some() && !part.is_of_a_layer() {
            let message =
                format!("there is only one `{}`, it takes no layers: write `{0}=cpu` or `{0}=gpu`", part.name());
            return Err(RulesError { at: dot, message });
        }
        if !self.sign('=') {
            return Err(self.expected("`=` and a device, as in `attn=gpu`"));
        }
        let (at, word) = self.word();
        let device = Device::ALL.into_iter().find(|device| device.name().eq_ignore_ascii_case(&word));
        let device = device.ok_or_else(|| unknown(at, &word, "a device (cpu or gpu)"))?;
        Ok(Rule { part, layers, device })
    }

    /// `N` or `N-M`.
    fn layers(&mut self) -> Result<RangeInclusive<usize>, RulesError> {
        let (at, first) = self.number()?;
        let last = if self.sign('-') { self.number()?.1 } else { first };
        if last < first {
            return Err(RulesError { at, message: format!("layers {first}-{last} run backwards") });
        }
        Ok(first..=last)
    }

    fn number(&mut self) -> Result<(usize, usize), RulesError> {
        let (at, word) = self.word();
        match word.parse() {
            // `parse` also takes a plus sign, which cannot be part of a word.
            Ok(number) => Ok((at, number)),
            Err(_) => Err(unknown(at, &word, "a layer, as in `ffn.3` or `ffn.0-11`")),
        }
    }

    /// The letters and digits that come next, and where they begin.
    fn word(&mut self) -> (usize, String) {
        self.spaces();
        let at = self.at;
        let word: String = self.chars[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
        self.at += word.chars().count();
        (at, word)
    }

    /// Whether this sign comes next; if so, it is taken.
    fn sign(&mut self, sign: char) -> bool {
        self.spaces();
        let is_next = self.chars.get(self.at) == Some(&sign);
        self.at += usize::from(is_next);
        is_next
    }

    fn spaces(&mut self) {
        while self.chars.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
    }

    fn end(&mut self) -> Result<(), RulesError> {
        self.spaces();
        if self.at == self.chars.len() { Ok(()) } else { Err(self.expected("`,` or the end")) }
    }

    fn expected(&self, what: &str) -> RulesError {
        let found = self.chars.get(self.at).map_or("the end".to_owned(), |c| format!("`{c}`"));
        RulesError { at: self.at, message: format!("expected {what}, found {found}") }
    }
}

fn unknown(at: usize, word: &str, wanted: &str) -> RulesError {
    let found = if word.is_empty() { String::new() } else { format!(", not `{word}`") };
    RulesError { at, message: format!("expected {wanted}{found}") }
}
