//! Rules for source files and manifests. Pure.

use super::{Problem, SourceFile};

/// Above this a file has more than one owner's worth of code in it.
const LINE_LIMIT: usize = 600;
/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Paths that exist on one machine only, in two parts so that this file does not break its own rule.
const LOCAL_PATHS: [(&str, &str); 3] = [("/wo", "rk/"), ("/ro", "ot/"), ("/tm", "p/w/")];

/// Everything that is wrong with one file.
pub(super) fn check(file: &SourceFile) -> Vec<Problem> {
    let mut problems = local_paths(file);
    problems.extend(unfinished(file));
    if file.path.ends_with(".rs") {
        problems.extend(header(file));
        problems.extend(length(file));
        problems.extend(reasons(file));
        problems.extend(doc_tests(file));
    }
    if file.path.ends_with("Cargo.toml") {
        problems.extend(manifest(file));
    }
    problems.extend(second_entry_point(file));
    problems
}

fn lines(file: &SourceFile) -> impl Iterator<Item = (usize, &str)> {
    file.text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

fn header(file: &SourceFile) -> Option<Problem> {
    let first = file.text.lines().next().unwrap_or_default();
    let says_something = first
        .strip_prefix("//! ")
        .is_some_and(|text| text.len() >= 5);
    (!says_something).then(|| {
        Problem::new(
            file,
            1,
            "the first line must be `//! …`: what this file owns",
        )
    })
}

fn length(file: &SourceFile) -> Option<Problem> {
    let count = file.text.lines().count();
    let excused = LONG_FILES.iter().any(|(path, _)| *path == file.path);
    (count > LINE_LIMIT && !excused).then(|| {
        let rule = format!("{count} lines; {LINE_LIMIT} is the limit: look for a seam");
        Problem::new(file, LINE_LIMIT, rule)
    })
}

/// `allow`, `expect` and `ignore` must say why. Clippy sees the first two only in code that it builds.
fn reasons(file: &SourceFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in lines(file) {
        let line = line.trim_start();
        let starts = |attribute: &str| {
            line.starts_with(&format!("#[{attribute}("))
                || line.starts_with(&format!("#![{attribute}("))
        };
        let is_exception = starts("allow") || starts("expect");
        if is_exception && !attribute_at(file, number).contains("reason") {
            problems.push(Problem::new(
                file,
                number,
                "an exception needs `reason = \"…\"`",
            ));
        }
        if line == "#[ignore]" {
            problems.push(Problem::new(
                file,
                number,
                "`#[ignore = \"why\"]`, or not at all",
            ));
        }
    }
    problems
}

/// `cargo xtask test` runs test programs; code in documentation would look tested and not be.
fn doc_tests(file: &SourceFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut open = false;
    for (number, line) in lines(file) {
        let line = line.trim_start();
        let text = line
            .strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"));
        let Some(kind) = text.and_then(|text| text.trim_start().strip_prefix("```")) else {
            continue;
        };
        open = !open;
        if open && !["text", "console", "json", "yaml"].contains(&kind.trim()) {
            problems.push(Problem::new(
                file,
                number,
                "examples in documentation are `text`, code belongs into a test",
            ));
        }
    }
    problems
}

/// The attribute that begins on line `number`, up to the line that closes it.
fn attribute_at(file: &SourceFile, number: usize) -> String {
    let mut joined = String::new();
    for line in file.text.lines().skip(number - 1) {
        joined.push_str(line);
        if line.trim_end().ends_with(")]") {
            break;
        }
    }
    joined
}

fn local_paths(file: &SourceFile) -> Vec<Problem> {
    let words: Vec<String> = LOCAL_PATHS
        .iter()
        .map(|(first, second)| format!("{first}{second}"))
        .collect();
    let found = lines(file).filter(|(_, line)| {
        words.iter().any(|word| {
            line.match_indices(word.as_str()).any(|(at, _)| {
                // `…/framework/` and the container's own home are something else.
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '/' || c == '}')
            })
        })
    });
    found
        .map(|(number, _)| Problem::new(file, number, "a path that exists on one machine only"))
        .collect()
}

fn unfinished(file: &SourceFile) -> Vec<Problem> {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let found = lines(file).filter(|(_, line)| {
        marks.iter().any(|mark| {
            line.match_indices(mark).any(|(at, _)| {
                let rest = &line[at + mark.len()..];
                (rest.starts_with(':')
                    || rest.starts_with(' ')
                    || rest.is_empty()
                    || mark.ends_with(':'))
                    && !rest.starts_with("(#")
            })
        })
    });
    found
        .map(|(number, _)| {
            Problem::new(
                file,
                number,
                concat!("unfinished work is an issue: `TO", "DO(#123): …`"),
            )
        })
        .collect()
}

fn manifest(file: &SourceFile) -> Vec<Problem> {
    if !file.text.contains("[package]") {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let squeezed = file.text.replace(' ', "");
    if !squeezed.contains("[lints]\nworkspace=true") {
        problems.push(Problem::new(
            file,
            1,
            "must have `[lints] workspace = true`",
        ));
    }
    for key in ["license", "description", "edition"] {
        let has = file.text.lines().any(|line| line.starts_with(key));
        if !has {
            problems.push(Problem::new(file, 1, format!("`{key}` is missing")));
        }
    }
    problems
}

/// `cargo xtask` is the one entry point; two are what readers trip on.
fn second_entry_point(file: &SourceFile) -> Option<Problem> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let is_other = matches!(
        name,
        "Makefile" | "makefile" | "justfile" | "Justfile" | "Taskfile.yml"
    ) || (name.ends_with(".sh") && !file.path.starts_with("deploy/"));
    is_other.then(|| Problem::new(file, 1, "scripts belong into xtask"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&file)
            .into_iter()
            .map(|problem| format!("{}: {}", problem.line, problem.rule))
            .collect()
    }

    const HEAD: &str = "//! Owns something worth a line.\n";

    fn rust(body: &str) -> Vec<String> {
        problems("a.rs", &format!("{HEAD}{body}"))
    }

    #[test]
    fn a_file_without_a_header_is_found() {
        assert_eq!(problems("a.rs", "fn f() {}\n").len(), 1);
        assert_eq!(problems("a.rs", "//!\n").len(), 1);
        assert_eq!(rust("fn f() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn a_file_of_601_lines_is_too_long_and_one_of_600_is_not() {
        assert_eq!(rust(&"\n".repeat(599)), Vec::<String>::new());
        assert!(rust(&"\n".repeat(600))[0].contains("601 lines"));
    }

    #[test]
    fn exceptions_must_say_why_also_over_several_lines() {
        assert_eq!(rust("#[allow(dead_code)]\n").len(), 1);
        assert_eq!(rust("#![expect(unsafe_code)]\n").len(), 1);
        assert_eq!(
            rust("#[expect(\n    dead_code,\n    reason = \"x\"\n)]\n"),
            Vec::<String>::new()
        );
        assert_eq!(rust("#[ignore]\n").len(), 1);
    }

    #[test]
    fn code_in_documentation_is_found_and_text_is_not() {
        assert_eq!(rust("/// ```\n/// f();\n/// ```\n").len(), 1);
        assert_eq!(
            rust("/// ```text\n/// a picture\n/// ```\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn paths_of_one_machine_are_found_and_others_are_not() {
        for (first, second) in LOCAL_PATHS {
            assert_eq!(
                rust(&format!("// see {first}{second}x\n")).len(),
                1,
                "{first}{second}"
            );
        }
        assert_eq!(
            rust("// a/frame/wo\u{72}k/x and https://x/ho\u{6d}e/\n").len(),
            0
        );
    }

    #[test]
    fn a_note_without_an_issue_is_found() {
        assert_eq!(rust(concat!("// TO", "DO: later\n")).len(), 1);
        assert_eq!(
            rust(concat!("// TO", "DO(#12): later\n")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_crate_must_inherit_the_lints_and_have_a_licence() {
        let good = "[package]\ndescription = \"x\"\nlicense.workspace = true\nedition.workspace = true\n\n[lints]\nworkspace = true\n";
        assert_eq!(problems("a/Cargo.toml", good), Vec::<String>::new());
        assert_eq!(problems("a/Cargo.toml", "[package]\n").len(), 4);
        assert_eq!(
            problems("Cargo.toml", "[workspace]\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_makefile_is_a_second_entry_point() {
        assert_eq!(problems("Makefile", "all:\n").len(), 1);
        assert_eq!(problems("tests/run.sh", "true\n").len(), 1);
    }
}
