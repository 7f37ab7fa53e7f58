//! The files of a topology, as the operator names them.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use isthmus_model::topology::{SourceFile, Topology, parse};
use isthmus_proto::v1;

use crate::diagnostics::{self, Finding};
use crate::errors::{Failure, unreadable};

const STDIN: &str = "<stdin>";

/// Reads what `-f` names: files, folders, standard input.
pub(crate) fn read(arguments: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for argument in arguments {
        if argument == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("Failed to read standard input")?;
            files.push(SourceFile { name: Arc::from(STDIN), text });
        } else if argument.is_dir() {
            for path in folder(argument)? {
                files.push(file(&path)?);
            }
        } else {
            files.push(file(argument)?);
        }
    }
    Ok(files)
}

fn file(path: &Path) -> Result<SourceFile> {
    let text =
        fs::read_to_string(path).map_err(|error| unreadable("the topology", path, &error))?;
    Ok(SourceFile { name: path.display().to_string().into(), text })
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("Failed to list the folder {}", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(context)? {
        let file = entry.with_context(context)?.path();
        if file.extension().is_some_and(|extension| extension == "toml") && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        let problem = format!("There is no *.toml in the folder {}", path.display());
        return Err(Failure::Refused(format!("{problem}; name the file that you mean")).into());
    }
    files.sort();
    Ok(files)
}

/// Reads them as one topology, or tells everything that is wrong with them.
pub(crate) fn topology(files: &[SourceFile]) -> Result<Topology, Vec<Finding>> {
    parse(files).map_err(|found| found.into_iter().map(diagnostics::from_model).collect())
}

/// As the controller is sent them.
pub(crate) fn to_messages(files: &[SourceFile]) -> Vec<v1::File> {
    let message =
        |file: &SourceFile| v1::File { name: file.name.to_string(), text: file.text.clone() };
    files.iter().map(message).collect()
}

/// As the controller has them.
pub(crate) fn from_messages(files: Vec<v1::File>) -> Vec<SourceFile> {
    files.into_iter().map(|file| SourceFile { name: file.name.into(), text: file.text }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_means_its_toml_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", "notes.md"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let files = read(&[folder.path().to_owned()]).unwrap();
        let texts: Vec<&str> = files.iter().map(|file| &*file.text).collect();
        assert_eq!(texts, ["a.toml", "b.toml"]);
        assert_eq!(&*files[0].name, folder.path().join("a.toml").to_str().unwrap());
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = read(&["/nonexistent/mesh.toml".into()]).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/mesh.toml"));
        let empty = tempfile::tempdir().unwrap();
        assert!(read(&[empty.path().to_owned()]).unwrap_err().to_string().contains("*.toml"));
    }
}
