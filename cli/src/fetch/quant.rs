//! Choosing a model among the files of a repository.

use super::error::FetchError;
use super::reference::Selection;

/// Which quant to take when the user names none: the first of these that is there.
const PREFERENCE: [&str; 8] = ["Q4_K_M", "Q4_0", "Q8_0", "Q4_K_S", "Q5_K_M", "Q6_K", "BF16", "F16"];

/// One model: a file, or all parts of a split one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    /// Paths in the repository, in order; at least one.
    pub(super) files: Vec<String>,
}

/// A split file's name: what is common, the number of this part and how many there are.
struct SplitName<'a> {
    stem: &'a str,
    part: usize,
    n_parts: usize,
}

/// Reads `NAME-00001-of-00003.gguf`.
fn split_name(path: &str) -> Option<SplitName<'_>> {
    let name = strip_gguf(path)?;
    let (rest, n_parts) = name.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| (digits.len() == 5).then(|| digits.parse::<usize>().ok()).flatten();
    let (part, n_parts) = (number(part)?, number(n_parts)?);
    (1..=n_parts).contains(&part).then_some(SplitName { stem, part, n_parts })
}

/// The path without `.gguf`.
fn strip_gguf(path: &str) -> Option<&str> {
    let (stem, extension) = path.split_at_checked(path.len().checked_sub(5)?)?;
    extension.eq_ignore_ascii_case(".gguf").then_some(stem)
}

/// Picks the model that `selection` means among the `files` of `repo`.
///
/// # Errors
/// [`FetchError::NoGguf`], [`FetchError::NoQuant`] (with the quants there are), [`FetchError::MissingPart`], and
/// [`FetchError::NotFound`] for a file that is not there.
pub(super) fn choose(repo: &str, endpoint: &str, files: &[String], selection: &Selection) -> Result<Model, FetchError> {
    let mut firsts: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|path| is_model(path) && split_name(path).is_none_or(|split| split.part == 1))
        .collect();
    // A plain `-Q4_K_M` before `-UD-Q4_K_M` and the like.
    firsts.sort_by_key(|path| (path.len(), *path));
    let first = match selection {
        Selection::File(path) if !files.contains(path) => {
            return Err(FetchError::NotFound { what: format!("{repo}/{path}"), endpoint: endpoint.to_owned() });
        }
        Selection::File(path) => return with_parts(repo, files, path),
        Selection::Quant(quant) => match find(&firsts, quant) {
            Some(path) => path,
            None => return Err(no_quant(repo, &firsts, quant)),
        },
        Selection::Any => {
            let preferred = PREFERENCE.iter().find_map(|quant| find_word(&firsts, quant));
            let alphabetical = firsts.iter().copied().min();
            preferred.or(alphabetical).ok_or_else(|| FetchError::NoGguf { repo: repo.to_owned() })?
        }
    };
    with_parts(repo, files, first)
}

/// Whether a file is a model, and not a vision projector or calibration data, which repositories keep beside it.
fn is_model(path: &str) -> bool {
    let name = base_name(path).to_ascii_lowercase();
    name.ends_with(".gguf") && !name.contains("mmproj") && !name.contains("imatrix")
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The first file with `quant` as a whole word of its name or path, else with a word of its name that begins with it.
fn find<'a>(firsts: &[&'a str], quant: &str) -> Option<&'a str> {
    let begins = |path: &&&str| words(base_name(path), quant).next().is_some();
    find_word(firsts, quant).or_else(|| firsts.iter().find(begins).copied())
}

/// The first file with `quant` as a whole word of its name, else of its path.
fn find_word<'a>(firsts: &[&'a str], quant: &str) -> Option<&'a str> {
    let is_whole = |text: &str| words(text, quant).any(|rest| !rest.starts_with(is_of_quant));
    let of_name = firsts.iter().find(|path| is_whole(base_name(path)));
    of_name.or_else(|| firsts.iter().find(|path| is_whole(path))).copied()
}

/// What follows each `start` that begins a word of `text`, whatever the case.
fn words<'a>(text: &'a str, start: &str) -> impl Iterator<Item = &'a str> {
    let found: Vec<usize> =
        text.to_ascii_lowercase().match_indices(&start.to_ascii_lowercase()).map(|(at, _)| at).collect();
    let len = start.len();
    found.into_iter().filter(|at| !text[..*at].ends_with(is_of_quant)).map(move |at| &text[at + len..])
}

/// Whether a character is part of a quant's name.
fn is_of_quant(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// `first` with the other parts when it is split.
fn with_parts(repo: &str, files: &[String], first: &str) -> Result<Model, FetchError> {
    let Some(split) = split_name(first) else {
        return Ok(Model { files: vec![first.to_owned()] });
    };
    let n_parts = split.n_parts;
    let mut parts = Vec::new();
    for part in 1..=n_parts {
        let is_part = |path: &&String| {
            split_name(path).is_some_and(|s| s.stem == split.stem && s.part == part && s.n_parts == n_parts)
        };
        let Some(path) = files.iter().find(is_part) else {
            return Err(FetchError::MissingPart {
                repo: repo.to_owned(),
                file: first.to_owned(),
                n_parts,
                missing: part,
            });
        };
        parts.push(path.clone());
    }
    Ok(Model { files: parts })
}

fn no_quant(repo: &str, firsts: &[&str], wanted: &str) -> FetchError {
    let mut quants: Vec<&str> = firsts.iter().map(|path| quant_of(path)).collect();
    quants.sort_unstable();
    quants.dedup();
    match quants.first() {
        None => FetchError::NoGguf { repo: repo.to_owned() },
        Some(example) => FetchError::NoQuant {
            repo: repo.to_owned(),
            wanted: wanted.to_owned(),
            available: quants.join(", "),
            example: (*example).to_owned(),
        },
    }
}

/// The models that are whole among `files`: projectors and the like are left out, parts of a split one are one model.
pub(super) fn whole_models(files: &[String]) -> Vec<Model> {
    let is_first = |path: &&String| is_model(path) && split_name(path).is_none_or(|split| split.part == 1);
    files.iter().filter(is_first).filter_map(|path| with_parts("", files, path).ok()).collect()
}

/// The part of a file's name that names its quant; the whole name where none does.
pub(super) fn quant_of(path: &str) -> &str {
    let name = base_name(path);
    let stem = strip_gguf(name).unwrap_or(name);
    let is_quant = |word: &&str| {
        let word = word.to_ascii_uppercase();
        let digits = ["IQ", "TQ", "Q"].iter().find_map(|prefix| word.strip_prefix(prefix));
        let is_float = matches!(word.as_str(), "F16" | "FP16" | "BF16" | "F32" | "FP32") || word.starts_with("MXFP");
        is_float || digits.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stem.split(['-', '.']).rev().find(is_quant).unwrap_or(stem)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], selection: Selection) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|f| f.to_string()).collect();
        choose("o/r", "http://hub", &files, &selection).map(|model| model.files).map_err(|e| e.to_string())
    }

    const FILES: [&str; 9] = [
        "README.md",
        "m-UD-Q4_K_M.gguf",
        "m-Q4_K_M.gguf",
        "m.Q8_0.gguf",
        "m-IQ4_XS.gguf",
        "m-Q4_0_4_4.gguf",
        "mmproj-m-f16.gguf",
        "big/m-bf16-00002-of-00002.gguf",
        "big/m-bf16-00001-of-00002.gguf",
    ];

    #[test]
    fn quants_match_as_words_whatever_the_case() {
        let quant = |q: &str| chosen(&FILES, Selection::Quant(q.into()));
        assert_eq!(chosen(&FILES, Selection::Any).unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(quant("q4_k_m").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(quant("ud-q4_k_m").unwrap(), ["m-UD-Q4_K_M.gguf"]);
        assert_eq!(quant("q8_0").unwrap(), ["m.Q8_0.gguf"]);
        assert_eq!(quant("Q4_K").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(quant("BF16").unwrap(), [FILES[8], FILES[7]]);
        assert_eq!(
            quant("Q2_K").unwrap_err(),
            "o/r has no Q2_K file: use one of IQ4_XS, Q4_0_4_4, Q4_K_M, Q8_0, bf16, as in `o/r:IQ4_XS`"
        );
    }

    #[test]
    fn files_by_path_and_missing_parts() {
        let file = |f: &str| chosen(&FILES, Selection::File(f.into()));
        assert_eq!(file("m-IQ4_XS.gguf").unwrap(), ["m-IQ4_XS.gguf"]);
        assert_eq!(file(FILES[8]).unwrap().len(), 2);
        assert!(file("x.gguf").unwrap_err().contains("o/r/x.gguf"));
        let missing = chosen(&["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], Selection::Any).unwrap_err();
        assert!(missing.contains("part 2 is not in o/r"), "{missing}");
        assert!(chosen(&["README.md", "mmproj-f16.gguf"], Selection::Any).unwrap_err().contains("holds no .gguf"));
        assert_eq!(chosen(&["b.gguf", "a.gguf"], Selection::Any).unwrap(), ["a.gguf"]);
    }

    #[test]
    fn part_of_a_word_is_another_quant() {
        let files = ["m-BF16.gguf", "m-TQ1_0.gguf", "m-Q4_0_8_8.gguf", "m-Q8_0.gguf"];
        assert_eq!(chosen(&files, Selection::Any).unwrap(), ["m-Q8_0.gguf"]);
        for other in ["F16", "Q1_0", "0_8"] {
            assert!(chosen(&files, Selection::Quant(other.into())).is_err(), "{other}");
        }
        assert_eq!(chosen(&files, Selection::Quant("q4_0".into())).unwrap(), ["m-Q4_0_8_8.gguf"]);
    }
}
