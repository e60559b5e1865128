//! The pre-tokenizers by name: how `tokenizer.ggml.pre` cuts a text into pieces before byte-level BPE.
//!
//! The patterns are those of each model's own `tokenizer.json`; the names are those that converters write. Each stage
//! cuts the pieces of the stage before. What a pattern does not match is a piece, too.

/// One cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Every match is a piece.
    Regex(&'static str),
    /// Runs of digits fall into groups of three, counted from the end of the run.
    DigitGroups,
    /// The same, but a run followed by a letter, mark or underscore is left whole.
    WordDigitGroups,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pre {
    /// Value of `tokenizer.ggml.pre`.
    pub(crate) name: &'static str,
    pub(crate) stages: &'static [Stage],
    /// A piece that is a token is that token, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// Whether a beginning-of-sequence token is added where the file does not say.
    pub(crate) add_bos: bool,
    /// Whether symbols are raw UTF-8 with spaces written as U+2581, instead of the byte alphabet.
    pub(crate) raw_utf8: bool,
}

use Stage::{DigitGroups, Regex, WordDigitGroups};

const GPT2_RE: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// English contractions in either case.
macro_rules! contraction {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

/// The end of most patterns: line ends with the white space before them, then other white space. All but the last white
/// space character before a word stay together.
macro_rules! spaces {
    () => {
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// Words with any one character before them, digits as given, punctuation with line ends.
macro_rules! words_digits {
    ($digits:literal) => {
        concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|", $digits, r"| ?[^\s\p{L}\p{N}]+[\r\n]*", spaces!())
    };
}

const LLAMA3_RE: &str = words_digits!(r"\p{N}{1,3}");
const QWEN2_RE: &str = words_digits!(r"\p{N}");

/// Words cut where upper case begins, with the contraction as part of the word.
macro_rules! cased_words {
    ($suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
            spaces!()
        )
    };
}

const TEKKEN_RE: &str = cased_words!("", r"\p{N}");
const GPT4O_RE: &str = cased_words!(concat!(contraction!(), "?"), r"\p{N}{1,3}");
const YOUTU_RE: &str = cased_words!(concat!(contraction!(), "?"), r"\p{N}");

const KIMI_RE: &str = concat!(
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    contraction!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    contraction!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    spaces!()
);

const QWEN35_RE: &str =
    concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", spaces!());

/// ASCII punctuation before a Latin word stays with it.
macro_rules! punctuated_words {
    ($rest:expr) => {
        concat!(r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##, $rest)
    };
}

const DEEPSEEK3_WORDS: Stage = Regex(punctuated_words!(concat!(r"| ?[\p{P}\p{S}]+[\r\n]*", spaces!())));
const DIGITS_1_TO_3: Stage = Regex(r"\p{N}{1,3}");
const DIGIT: Stage = Regex(r"\p{N}");
const HAN_KANA: Stage = Regex("[一-龥぀-ゟ゠-ヿ]+");
const HAN_HANGUL: Stage = Regex("[一-龥ࠀ-一가-퟿]+");
const LINES: Stage = Regex(r"[^\n]+|\n+");

const GPT2: &[Stage] = &[Regex(GPT2_RE)];
const STARCODER: &[Stage] = &[DIGIT, Regex(GPT2_RE)];
const LLAMA3: &[Stage] = &[Regex(LLAMA3_RE)];
const QWEN2: &[Stage] = &[Regex(QWEN2_RE)];
const TEKKEN: &[Stage] = &[Regex(TEKKEN_RE)];
const GPT4O: &[Stage] = &[Regex(GPT4O_RE)];
const DEEPSEEK3: &[Stage] = &[DIGITS_1_TO_3, HAN_KANA, DEEPSEEK3_WORDS];
const BLOOM_RE: Stage = Regex(r" ?[^(\s|.,!?…。，、।۔،)]+");
const BLOOM: &[Stage] = &[BLOOM_RE];

const DEFAULT: &[Stage] = &[Regex(r"[\p{P}\$\+<=>\^~\|]+"), Regex(GPT2_RE), Regex(r"\p{N}+"), Regex("[0-9][0-9][0-9]")];

const FALCON: &[Stage] = &[Regex(r"[\p{P}\$\+<=>\^~\|`]+"), Regex(GPT2_RE), Regex("[0-9][0-9][0-9]")];

const DEEPSEEK_LLM: &[Stage] = &[
    Regex(r"[\r\n]"),
    Regex(concat!(
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ",
        r"ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ",
        r"Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
    )),
    Regex(r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+"),
    Regex(r"\s+$"),
    HAN_HANGUL,
    Regex(r"\p{N}+"),
];

const DEEPSEEK_CODER: &[Stage] = &[Regex(r"[\r\n]"), Regex(r"\s?\p{L}+"), Regex(r"\s?\p{P}+"), HAN_HANGUL, DIGIT];

const YOUTU: &[Stage] = &[
    Regex("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"),
    Regex(YOUTU_RE),
];

const CHAMELEON: &[Stage] = &[
    Regex("<sentinel:[0-9]+>"),
    Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
    Regex(r"([\t\n]|    |  )"),
    DIGIT,
    Regex(r"[\p{P}!-/:-@\[-`{-~]"),
    Regex(GPT2_RE),
];

const AFMOE: &[Stage] = &[
    DigitGroups,
    Regex(
        "[一-鿿㐀-䶿\u{F900}-\u{FAFF}぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-\u{E7F}\u{E80}-\u{EFF}ក-\u{17FF}က-႟ꩠ-ꩿ\u{A9E0}-\u{A9FF}가-\u{D7AF}ᄀ-ᇿ]+",
    ),
    DEEPSEEK3_WORDS,
];

const JAIS2: &[Stage] = &[Regex(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)",
    r"|\s{1,2}(?!\S)|\s"
))];

const BAILING: &[Stage] = &[Regex(concat!(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
))];

const SEED_CODER: &[Stage] =
    &[Regex(concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+", spaces!()))];

const EXAONE_MOE: &[Stage] = &[Regex(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
))];

const SPARK: &[Stage] =
    &[DIGITS_1_TO_3, HAN_KANA, Regex(punctuated_words!(r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+")), DIGIT];

const UFAKZEKA: &[Stage] = &[Regex(concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*", spaces!()))];

/// A row without extras.
const fn row(name: &'static str, stages: &'static [Stage]) -> Pre {
    Pre { name, stages, ignore_merges: false, add_bos: false, raw_utf8: false }
}

/// A row whose whole-piece tokens come before the merges.
const fn whole(name: &'static str, stages: &'static [Stage]) -> Pre {
    Pre { ignore_merges: true, ..row(name, stages) }
}

/// The same, and a beginning-of-sequence token is usual.
const fn whole_bos(name: &'static str, stages: &'static [Stage]) -> Pre {
    Pre { add_bos: true, ..whole(name, stages) }
}

/// A row whose symbols are raw UTF-8.
const fn raw(name: &'static str, stages: &'static [Stage]) -> Pre {
    Pre { raw_utf8: true, ..row(name, stages) }
}

/// The registry: one row per name.
pub(crate) static PRE_TOKENIZERS: &[Pre] = &[
    row("default", DEFAULT),
    row("gpt-2", GPT2),
    row("phi-2", GPT2),
    row("mpt", GPT2),
    row("olmo", GPT2),
    row("jais", GPT2),
    row("trillion", GPT2),
    row("granite-docling", GPT2),
    row("exaone4", GPT2),
    row("jina-es", GPT2),
    row("jina-de", GPT2),
    row("jina-v1-en", GPT2),
    row("jina-v2-es", GPT2),
    row("jina-v2-de", GPT2),
    row("jina-v2-code", GPT2),
    row("roberta-bpe", GPT2),
    row("modern-bert", GPT2),
    row("gigachat", GPT2),
    row("a.x-4.0", GPT2),
    row("mellum", GPT2),
    row("starcoder", STARCODER),
    row("refact", STARCODER),
    row("command-r", STARCODER),
    row("smollm", STARCODER),
    row("codeshell", STARCODER),
    row("exaone", STARCODER),
    row("minerva-7b", STARCODER),
    row("mellum2", STARCODER),
    whole_bos("llama3", LLAMA3),
    whole_bos("llama-v3", LLAMA3),
    whole_bos("llama-bpe", LLAMA3),
    whole_bos("falcon3", LLAMA3),
    whole_bos("falcon-h1", LLAMA3),
    whole_bos("pixtral", LLAMA3),
    whole_bos("midm-2.0", LLAMA3),
    whole_bos("lfm2", LLAMA3),
    whole_bos("jina-v5-nano", LLAMA3),
    row("dbrx", LLAMA3),
    row("smaug-bpe", LLAMA3),
    row("glm4", LLAMA3),
    row("chatglm-bpe", LLAMA3),
    whole("minicpm5", &[DIGITS_1_TO_3, Regex(words_digits!(r"\p{N}+"))]),
    row("qwen2", QWEN2),
    row("deepseek-r1-qwen", QWEN2),
    row("megrez", QWEN2),
    row("kormo", QWEN2),
    row("f2llmv2", QWEN2),
    row("stablelm2", QWEN2),
    row("hunyuan", QWEN2),
    row("solar-open", QWEN2),
    row("grok-2", QWEN2),
    row("qwen35", &[Regex(QWEN35_RE)]),
    row("ufakzeka", UFAKZEKA),
    row("laguna", &[LINES, Regex(QWEN2_RE)]),
    row("deepseek-llm", DEEPSEEK_LLM),
    row("deepseek-coder", DEEPSEEK_CODER),
    row("deepseek-v3", DEEPSEEK3),
    row("hunyuan-dense", DEEPSEEK3),
    row("joyai-llm", DEEPSEEK3),
    row("hy_v4", DEEPSEEK3),
    row("spark2_5", SPARK),
    whole("youtu", YOUTU),
    row("afmoe", AFMOE),
    row("falcon", FALCON),
    row("poro-chat", BLOOM),
    row("bloom", BLOOM),
    row("gpt3-finnish", BLOOM),
    row("viking", &[BLOOM_RE, DIGIT]),
    whole_bos("tekken", TEKKEN),
    Pre { add_bos: true, ..row("chameleon", CHAMELEON) },
    row("gpt-4o", GPT4O),
    row("llama4", GPT4O),
    row("kanana2", GPT4O),
    row("talkie", GPT4O),
    row("minimax-m2", GPT4O),
    whole("granite-embed-multi-97m", GPT4O),
    row("tiny_aya", &[WordDigitGroups, Regex(GPT4O_RE)]),
    row("cohere2moe", &[WordDigitGroups, Regex(GPT4O_RE)]),
    row("kimi-k2", &[Regex(KIMI_RE)]),
    row("superbpe", &[Regex(r"\p{N}+"), DigitGroups]),
    row("jais-2", JAIS2),
    row("bailingmoe", BAILING),
    row("bailingmoe2", BAILING),
    row("llada-moe", BAILING),
    row("seed-coder", SEED_CODER),
    row("exaone-moe", EXAONE_MOE),
    Pre { add_bos: true, ..raw("gemma4", &[LINES]) },
    raw("granite-embed-multi-311m", &[LINES]),
    raw("sarvam-moe", &[LINES]),
];

/// The row of a name.
pub(crate) fn find(name: &str) -> Option<&'static Pre> {
    PRE_TOKENIZERS.iter().find(|pre| pre.name == name)
}

/// All names, for messages.
pub(crate) fn names() -> String {
    PRE_TOKENIZERS.iter().map(|pre| pre.name).collect::<Vec<_>>().join(", ")
}
