//! Joining WGSL sources by three kinds of lines: `#include`, `#if` and the WGSL directives that must come first.

use std::collections::HashSet;
use std::fmt;

/// One setting of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Define<'a> {
    /// An option that `#if` lines ask for.
    Flag(&'a str, bool),
    /// Becomes `const NAME = VALUE;` in front of the text: name and value, such as `("TILE", "16u")`.
    Const(&'a str, &'a str),
}

impl<'a> Define<'a> {
    fn name(&self) -> &'a str {
        match self {
            Define::Flag(name, _) | Define::Const(name, _) => name,
        }
    }
}

/// A line of a source; lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the source.
    pub source: String,
    /// Line in it.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.source, self.line)
    }
}

/// Why sources cannot be joined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// The kernel asked for does not exist.
    #[error("there is no source `{name}`")]
    NoRoot {
        /// The name asked for.
        name: String,
    },
    /// An `#include` of something that does not exist.
    #[error("{place}: there is no source `{name}` to include")]
    NoSource {
        /// The `#include`.
        place: Place,
        /// The name in it.
        name: String,
    },
    /// A source that includes itself, directly or through others.
    #[error("{place}: circular include: {chain}")]
    Cycle {
        /// The `#include` that closes the circle.
        place: Place,
        /// The way around: `a -> b -> a`.
        chain: String,
    },
    /// An `#if` on an option that the variant does not set, to true or to false.
    #[error("{place}: option `{name}` is not set; give it as true or false")]
    UnknownOption {
        /// The `#if`.
        place: Place,
        /// The option.
        name: String,
    },
    /// A line that begins with `#` and is none of the known ones, or stands in the wrong place.
    #[error("{place}: {message}")]
    Directive {
        /// The line.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// Two sources, or two settings, of the same name.
    #[error("`{name}` is given twice")]
    Twice {
        /// The name.
        name: String,
    },
}

/// Joins `root` and everything it includes into one WGSL text. `sources` are pairs of name and text.
///
/// * `#include "NAME"` puts the source of that name here, the first time; every later one is left out.
/// * `#if OPTION`, `#else`, `#endif` keep one of two parts. They nest. An option must be among `defines`, true or false,
///   so that a misspelled one is an error. Lines of the part left out are not looked at, but for nested `#if`s.
/// * `enable`, `requires` and `diagnostic` lines, which WGSL wants before all else, go to the top, each once.
///
/// The [`Define::Const`]s follow them, then the text. It names its origin in comments (`// from NAME, line 1`) and keeps
/// the line count between two of them, so that a line of a shader compiler's message is found by counting on.
///
/// ```
/// use tandem_shaders::{Define, compose};
///
/// let sources = [
///     ("gemv.wgsl", "#include \"decode.wgsl\"\n#if BIAS\nfn bias() {}\n#endif\nfn gemv() { decode(TILE); }"),
///     ("decode.wgsl", "enable f16;\nfn decode(n: u32) {}"),
/// ];
/// let text = compose("gemv.wgsl", &sources, &[Define::Flag("BIAS", false), Define::Const("TILE", "16u")])?;
/// assert!(text.starts_with("enable f16;\nconst TILE = 16u;\n"));
/// assert!(text.contains("fn decode") && !text.contains("fn bias"));
/// # Ok::<(), tandem_shaders::ComposeError>(())
/// ```
///
/// # Errors
/// A missing source, a circular include, an unknown option, a malformed line: each with the source and line it is in.
pub fn compose(root: &str, sources: &[(&str, &str)], defines: &[Define<'_>]) -> Result<String, ComposeError> {
    refuse_twice(sources.iter().map(|(name, _)| *name))?;
    refuse_twice(defines.iter().map(Define::name))?;
    let mut composer = Composer { sources, defines, open: Vec::new(), done: HashSet::new(), top: vec![], body: vec![] };
    let (name, text) = composer.find(root).ok_or_else(|| ComposeError::NoRoot { name: root.to_owned() })?;
    composer.add(name, text)?;
    let mut out = composer.top.join("\n");
    out.extend(composer.top.last().map(|_| '\n'));
    for define in defines {
        match define {
            Define::Const(name, value) => out += &format!("const {name} = {value};\n"),
            Define::Flag(..) => {}
        }
    }
    out += &composer.body.join("\n");
    out.push('\n');
    Ok(out)
}

fn refuse_twice<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ComposeError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ComposeError::Twice { name: name.to_owned() });
        }
    }
    Ok(())
}

struct Composer<'a> {
    sources: &'a [(&'a str, &'a str)],
    defines: &'a [Define<'a>],
    /// The sources being read, outermost first.
    open: Vec<&'a str>,
    /// The sources read or being read.
    done: HashSet<&'a str>,
    /// WGSL directives, each once.
    top: Vec<&'a str>,
    /// All other lines.
    body: Vec<String>,
}

/// An `#if` that is not closed yet.
struct If {
    line: usize,
    /// Whether lines outside of it are kept.
    outside: bool,
    /// Whether its current part is.
    kept: bool,
    in_else: bool,
}

impl<'a> Composer<'a> {
    fn find(&self, name: &str) -> Option<(&'a str, &'a str)> {
        self.sources.iter().find(|(n, _)| *n == name).copied()
    }

    /// Adds a source that was not added before.
    fn add(&mut self, name: &'a str, text: &'a str) -> Result<(), ComposeError> {
        self.open.push(name);
        self.done.insert(name);
        self.body.push(format!("// from {name}, line 1"));
        let mut ifs: Vec<If> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let place = || Place { source: name.to_owned(), line: i + 1 };
            let trimmed = line.trim();
            let kept = ifs.last().is_none_or(|x| x.kept);
            let directive = trimmed.strip_prefix('#').map(|rest| rest.split_once(' ').unwrap_or((rest, "")));
            match directive {
                Some(("if" | "else" | "endif", _)) => {
                    self.branch(trimmed, &mut ifs, &place())?;
                    self.body.push(String::new());
                }
                _ if !kept => self.body.push(String::new()),
                Some(("include", target)) => {
                    self.include(target.trim(), &place())?;
                    self.body.push(format!("// from {name}, line {}", i + 2));
                }
                Some((word, _)) => return Err(malformed(&place(), format!("there is no `#{word}`"))),
                None if is_wgsl_directive(trimmed) => {
                    if !self.top.contains(&trimmed) {
                        self.top.push(trimmed);
                    }
                    self.body.push(String::new());
                }
                None => self.body.push(line.to_owned()),
            }
        }
        if let Some(open) = ifs.last() {
            let place = Place { source: name.to_owned(), line: open.line };
            return Err(malformed(&place, "this `#if` has no `#endif`"));
        }
        self.open.pop();
        Ok(())
    }

    /// Handles `#if OPTION`, `#else` and `#endif`.
    fn branch(&self, line: &str, ifs: &mut Vec<If>, place: &Place) -> Result<(), ComposeError> {
        match (line.split_whitespace().collect::<Vec<_>>().as_slice(), ifs.last_mut()) {
            (["#if", option], open) => {
                let outside = open.is_none_or(|x| x.kept);
                // In a part that is left out nothing is asked.
                let kept = outside && self.flag(option, place)?;
                ifs.push(If { line: place.line, outside, kept, in_else: false });
            }
            (["#else"], Some(open)) if !open.in_else => {
                open.kept = open.outside && !open.kept;
                open.in_else = true;
            }
            (["#endif"], Some(_)) => {
                ifs.pop();
            }
            (["#else"], Some(_)) => return Err(malformed(place, "a second `#else`")),
            (["#else" | "#endif"], None) => return Err(malformed(place, format!("`{line}` without `#if`"))),
            _ => return Err(malformed(place, format!("`{line}` is not `#if OPTION`, `#else` or `#endif`"))),
        }
        Ok(())
    }

    fn flag(&self, option: &str, place: &Place) -> Result<bool, ComposeError> {
        let flag = self.defines.iter().find_map(|define| match define {
            Define::Flag(name, on) if *name == option => Some(*on),
            Define::Flag(..) | Define::Const(..) => None,
        });
        flag.ok_or_else(|| ComposeError::UnknownOption { place: place.clone(), name: option.to_owned() })
    }

    fn include(&mut self, target: &str, place: &Place) -> Result<(), ComposeError> {
        let name = target.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let name = name.ok_or_else(|| malformed(place, "write `#include \"NAME\"`"))?;
        let Some((name, text)) = self.find(name) else {
            return Err(ComposeError::NoSource { place: place.clone(), name: name.to_owned() });
        };
        if let Some(at) = self.open.iter().position(|open| *open == name) {
            let chain = [&self.open[at..], &[name]].concat().join(" -> ");
            return Err(ComposeError::Cycle { place: place.clone(), chain });
        }
        if self.done.contains(name) { Ok(()) } else { self.add(name, text) }
    }
}

/// Whether WGSL wants this line before all declarations.
fn is_wgsl_directive(line: &str) -> bool {
    ["enable ", "requires ", "diagnostic("].iter().any(|word| line.starts_with(word))
}

fn malformed(place: &Place, message: impl Into<String>) -> ComposeError {
    ComposeError::Directive { place: place.clone(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that are neither empty nor comments.
    fn lines(root: &str, sources: &[(&str, &str)], defines: &[Define<'_>]) -> Vec<String> {
        let text = compose(root, sources, defines).unwrap();
        text.lines().filter(|l| !l.is_empty() && !l.starts_with("// from")).map(str::to_owned).collect()
    }

    fn message(sources: &[(&str, &str)], defines: &[Define<'_>]) -> String {
        compose("a", sources, defines).unwrap_err().to_string()
    }

    #[test]
    fn a_text_without_directives_stays_as_it_is() {
        assert_eq!(compose("a", &[("a", "x\n  y\n")], &[]).unwrap(), "// from a, line 1\nx\n  y\n");
        assert_eq!(compose("a", &[("a", "")], &[]).unwrap(), "// from a, line 1\n");
    }

    #[test]
    fn each_source_is_included_once_before_what_follows() {
        // A diamond: d is wanted by b and by c.
        let sources = [
            ("a", "#include \"b\"\n#include \"c\"\nfn a"),
            ("b", "#include \"d\"\nfn b"),
            ("c", "  #include \"d\"\nfn c"),
            ("d", "fn d"),
            ("unused", "fn unused"),
        ];
        assert_eq!(lines("a", &sources, &[]), ["fn d", "fn b", "fn c", "fn a"]);
        assert_eq!(lines("c", &sources, &[]), ["fn d", "fn c"]);
    }

    #[test]
    fn every_line_can_be_traced_to_its_source() {
        let a = "enable f16;\na2\n#if F\na4\n#else\na6\n#endif\n#include \"b\"\na9\n#include \"b\"\na11";
        let b = "b1\nb2";
        for on in [false, true] {
            let text = compose("a", &[("a", a), ("b", b)], &[Define::Flag("F", on), Define::Const("N", "1u")]).unwrap();
            let mut at = (String::new(), 0);
            let mut traced = 0;
            for line in text.lines() {
                if let Some((source, n)) = line.strip_prefix("// from ").and_then(|rest| rest.split_once(", line ")) {
                    at = (source.to_owned(), n.parse().unwrap());
                    continue;
                }
                if line.starts_with(['a', 'b']) {
                    assert_eq!(line, format!("{}{}", at.0, at.1));
                    traced += 1;
                }
                at.1 += 1;
            }
            assert_eq!(traced, 6, "a2, a4 or a6, b1, b2, a9, a11");
        }
    }

    #[test]
    fn options_choose_parts_and_nest() {
        let text = "#if A\na\n#if B\nab\n#else\nanb\n#endif\n#else\nna\n#if B\nnab\n#endif\n#endif\nend";
        let cases: [(bool, bool, &[&str]); 4] = [
            (true, true, &["a", "ab", "end"]),
            (true, false, &["a", "anb", "end"]),
            (false, true, &["na", "nab", "end"]),
            (false, false, &["na", "end"]),
        ];
        for (a, b, expected) in cases {
            assert_eq!(lines("a", &[("a", text)], &[Define::Flag("A", a), Define::Flag("B", b)]), expected);
        }
    }

    #[test]
    fn a_part_left_out_asks_for_nothing() {
        let text = "#if A\n#include \"nowhere\"\n#if UNSET\n#else\n#what\n#endif\nenable f16;\n#endif\nend";
        assert_eq!(lines("a", &[("a", text)], &[Define::Flag("A", false)]), ["end"]);
    }

    #[test]
    fn wgsl_directives_come_first_each_once_then_constants() {
        let sources = [
            ("a", "enable f16;\n#include \"b\"\n@diagnostic(off, x) fn a"),
            ("b", "const b = 1;\n enable f16;\nrequires y;\ndiagnostic(off, x);"),
        ];
        let defines = [Define::Const("N", "4u"), Define::Flag("F", true), Define::Const("M", "array(1, 2)")];
        let expected = [
            "enable f16;",
            "requires y;",
            "diagnostic(off, x);",
            "const N = 4u;",
            "const M = array(1, 2);",
            "const b = 1;",
            "@diagnostic(off, x) fn a",
        ];
        assert_eq!(lines("a", &sources, &defines), expected);
    }

    #[test]
    fn missing_sources_are_named_with_the_line_that_wants_them() {
        assert_eq!(message(&[("b", "")], &[]), "there is no source `a`");
        assert_eq!(message(&[("a", "x\n#include \"b\"")], &[]), "a, line 2: there is no source `b` to include");
        let sources = [("a", "#include \"b\""), ("b", "\n\n#include \"c\"")];
        assert_eq!(message(&sources, &[]), "b, line 3: there is no source `c` to include");
    }

    #[test]
    fn circular_includes_are_refused_with_the_way_around() {
        assert_eq!(message(&[("a", "\n#include \"a\"")], &[]), "a, line 2: circular include: a -> a");
        let sources = [("a", "#include \"b\""), ("b", "#include \"c\""), ("c", "x\n#include \"b\"")];
        assert_eq!(message(&sources, &[]), "c, line 2: circular include: b -> c -> b");
    }

    #[test]
    fn malformed_lines_are_refused() {
        let cases = [
            ("#define X 1", "a, line 1: there is no `#define`"),
            ("#", "a, line 1: there is no `#`"),
            ("#include b", "a, line 1: write `#include \"NAME\"`"),
            ("#include \"", "a, line 1: write `#include \"NAME\"`"),
            ("#if", "a, line 1: `#if` is not `#if OPTION`, `#else` or `#endif`"),
            ("#if F G", "a, line 1: `#if F G` is not `#if OPTION`, `#else` or `#endif`"),
            ("#else", "a, line 1: `#else` without `#if`"),
            ("x\n#endif", "a, line 2: `#endif` without `#if`"),
            ("#if F\n#else\n#else\n#endif", "a, line 3: a second `#else`"),
            ("#if F\n#else x\n#endif", "a, line 2: `#else x` is not `#if OPTION`, `#else` or `#endif`"),
            ("x\n#if F\ny", "a, line 2: this `#if` has no `#endif`"),
            ("#if G\n#endif", "a, line 1: option `G` is not set; give it as true or false"),
            ("#if N\n#endif", "a, line 1: option `N` is not set; give it as true or false"),
        ];
        for (text, expected) in cases {
            assert_eq!(message(&[("a", text)], &[Define::Flag("F", true), Define::Const("N", "1")]), expected);
        }
    }

    #[test]
    fn an_if_does_not_reach_across_sources() {
        let sources = [("a", "#if F\n#include \"b\"\nx"), ("b", "#endif")];
        assert_eq!(message(&sources, &[Define::Flag("F", true)]), "b, line 1: `#endif` without `#if`");
    }

    #[test]
    fn names_given_twice_are_refused() {
        assert_eq!(message(&[("a", ""), ("b", ""), ("a", "")], &[]), "`a` is given twice");
        let twice = [Define::Flag("X", true), Define::Const("X", "1")];
        assert_eq!(message(&[("a", "")], &twice), "`X` is given twice");
    }
}
