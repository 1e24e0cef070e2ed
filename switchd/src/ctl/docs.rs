//! Completions and manual pages, from the same definitions as the parser.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::{Outcome, say_as_it_is};
use crate::cli::Cli;

/// Writes the completion script of `shell`.
pub(super) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vswitchctl", &mut script);
    say_as_it_is(&String::from_utf8_lossy(&script))
}

/// Writes one page to standard output, or all of them into a directory.
pub(super) fn man(target: &OsStr) -> Outcome {
    let pages = pages();
    if let Some(page) = pages.iter().find(|page| target == page.name.as_str()) {
        return say_as_it_is(&render(page)?);
    }
    let folder = Path::new(target);
    if !folder.is_dir() {
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        let text =
            format!("'{}' is neither a directory nor a page; pages: {}", folder.display(), names.join(", "));
        return Err(text.into());
    }
    for page in &pages {
        let path = folder.join(format!("{}.{}", page.name, page.section));
        fs::write(&path, render(page)?)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// A manual page.
struct Page {
    name: String,
    section: &'static str,
    command: Command,
}

/// vswitchd(8), vswitchctl(1), a page for each of its commands, and vswitch-bridge-helper(8).
fn pages() -> Vec<Page> {
    let daemon = crate::vswitchd::Options::command();
    let mut pages = vec![Page { name: "vswitchd".to_owned(), section: "8", command: daemon }];
    let mut root = Cli::command();
    root.build();
    collect("vswitchctl", &root, &mut pages);
    let helper = crate::attach::helper::Options::command();
    pages.push(Page { name: "vswitch-bridge-helper".to_owned(), section: "8", command: helper });
    pages
}

fn collect(name: &str, command: &Command, pages: &mut Vec<Page>) {
    pages.push(Page { name: name.to_owned(), section: "1", command: command.clone() });
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        collect(&format!("{name}-{}", verb.get_name()), verb, pages);
    }
}

fn render(page: &Page) -> Result<String, String> {
    let mut roff = Vec::new();
    let command = page.command.clone().name(page.name.clone());
    clap_mangen::Man::new(command)
        .section(page.section)
        .render(&mut roff)
        .map_err(|error| format!("cannot write the page {}: {error}", page.name))?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command() {
        let pages = pages();
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        for name in [
            "vswitchd",
            "vswitch-bridge-helper",
            "vswitchctl",
            "vswitchctl-port-add",
            "vswitchctl-veth-add",
            "vswitchctl-stats",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        let port_add = pages.iter().find(|page| page.name == "vswitchctl-port-add").unwrap();
        let text = render(port_add).unwrap();
        assert!(text.contains(".TH vswitchctl-port-add 1") && text.contains("no\\-offload"), "{text}");
    }
}
