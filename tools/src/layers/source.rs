//! The modules of a crate, and the paths that each of them names.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Token, UseTree};

use super::tokens;

/// A path as it is written, without generic arguments, and its line.
#[derive(Clone, Debug)]
pub(crate) struct Mention {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    pub(crate) kind: Kind,
}

/// How a path is mentioned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// In code.
    Code,
    /// In a `use`, where a single name can be a module.
    Use,
    /// In a `pub use`, of whatever visibility: others can name it here.
    ReExport,
}

/// What a `use` brings into a module: a name, or with `*` all names.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) name: String,
    pub(crate) path: Vec<String>,
}

/// The root of a crate, a file of its own, or a block in the file of the module around it.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) file: usize,
    pub(crate) parent: Option<usize>,
    pub(crate) children: Vec<(String, usize)>,
    pub(crate) items: HashSet<String>,
    pub(crate) imports: Vec<Import>,
    pub(crate) mentions: Vec<Mention>,
}

/// A file: its path, and what the layers call it (`tree/node`; `tree` is `tree.rs` or
/// `tree/mod.rs`).
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
}

/// A crate. Its root is the first module, in the first file.
#[derive(Debug, Default)]
pub(crate) struct Crate {
    pub(crate) files: Vec<File>,
    pub(crate) modules: Vec<Module>,
    /// What the crate calls itself beside `crate`.
    pub(crate) own_names: HashSet<String>,
    /// What is compiled for tests only: files, each with the folder of the modules in it.
    pub(crate) left_out: Vec<(PathBuf, PathBuf)>,
    /// Macros by name, with the file that defines them.
    pub(crate) macros: Vec<(String, usize)>,
}

pub(crate) const ROOT: usize = 0;

impl Crate {
    /// Reads the crate with this root, without what only tests compile.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut this = Self::default();
        let base = root.parent().context("the root has no folder")?;
        this.read_file(root, base, base, None)?;
        Ok(this)
    }

    /// Reads a module's file. Files of modules in it are sought in `folder`.
    fn read_file(
        &mut self,
        path: &Path,
        base: &Path,
        folder: &Path,
        parent: Option<usize>,
    ) -> Result<usize> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let syntax = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        self.files.push(File { path: path.to_owned(), name: file_name(path, base) });
        let module = self.add_module(self.files.len() - 1, parent);
        let beside = path.parent().context("a file without a folder")?.to_owned();
        let mut reader =
            Reader { of: self, module, base, folder: folder.to_owned(), beside, failed: Ok(()) };
        let own: TokenStream = syntax.attrs.iter().map(ToTokens::to_token_stream).collect();
        if !only_in_tests(&own) {
            reader.visit_file(&syntax);
        }
        reader.failed?;
        Ok(module)
    }

    fn add_module(&mut self, file: usize, parent: Option<usize>) -> usize {
        self.modules.push(Module {
            file,
            parent,
            children: Vec::new(),
            items: HashSet::new(),
            imports: Vec::new(),
            mentions: Vec::new(),
        });
        self.modules.len() - 1
    }
}

/// `tree/mod.rs` and `tree.rs` are `tree`.
fn file_name(path: &Path, base: &Path) -> String {
    let name = path.strip_prefix(base).unwrap_or(path).with_extension("");
    let name = name.to_string_lossy().into_owned();
    name.strip_suffix("/mod").map_or(name.clone(), str::to_owned)
}

/// Collects what one module says.
struct Reader<'a> {
    of: &'a mut Crate,
    module: usize,
    base: &'a Path,
    /// Where files of modules are sought.
    folder: PathBuf,
    /// Where they are sought if they come with `#[path]`.
    beside: PathBuf,
    failed: Result<()>,
}

impl Reader<'_> {
    fn here(&mut self) -> &mut Module {
        &mut self.of.modules[self.module]
    }

    fn mention(&mut self, path: Vec<String>, line: usize, kind: Kind) {
        self.here().mentions.push(Mention { path, line, kind });
    }

    fn import(&mut self, tree: &UseTree, prefix: &[String], line: usize, kind: Kind) {
        let joined = |name: String| [prefix, &[name]].concat();
        let (name, path) = match tree {
            UseTree::Path(path) => {
                return self.import(&path.tree, &joined(path.ident.to_string()), line, kind);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, prefix, line, kind));
            }
            UseTree::Glob(_) => ("*".to_owned(), prefix.to_vec()),
            UseTree::Name(name) if name.ident == "self" => {
                (prefix.last().cloned().unwrap_or_default(), prefix.to_vec())
            }
            UseTree::Name(name) => (name.ident.to_string(), joined(name.ident.to_string())),
            UseTree::Rename(rename) if rename.ident == "self" => {
                (rename.rename.to_string(), prefix.to_vec())
            }
            UseTree::Rename(rename) => {
                (rename.rename.to_string(), joined(rename.ident.to_string()))
            }
        };
        self.mention(path.clone(), line, kind);
        self.here().imports.push(Import { name, path });
    }

    /// The files that a module can be, each with the folder of the modules in it.
    fn files_of(&self, item: &syn::ItemMod) -> Vec<(PathBuf, PathBuf)> {
        let inner = self.folder.join(item.ident.to_string());
        let mut files = vec![(inner.with_extension("rs"), inner.clone())];
        files.push((inner.join("mod.rs"), inner));
        for path in paths(&item.attrs) {
            let path = normal(&self.beside.join(path));
            let folder = path.parent().unwrap_or(&self.beside).to_owned();
            files.push((path, folder));
        }
        files.retain(|(path, _)| path.exists());
        files
    }

    /// Goes into a module: into its block, or into all files that it can be.
    fn enter(&mut self, item: &syn::ItemMod) -> Result<()> {
        let name = item.ident.to_string();
        if let Some((_, items)) = &item.content {
            let inner = self.of.add_module(self.of.modules[self.module].file, Some(self.module));
            self.here().children.push((name.clone(), inner));
            let outer = (self.module, self.folder.clone(), self.beside.clone());
            self.module = inner;
            self.folder.push(&name);
            self.beside = self.folder.clone();
            items.iter().for_each(|item| self.visit_item(item));
            (self.module, self.folder, self.beside) = outer;
            return Ok(());
        }
        let files = self.files_of(item);
        if files.is_empty() {
            bail!("{}: no file of the module {name}", self.folder.display());
        }
        for (path, folder) in files {
            let child = self.of.read_file(&path, self.base, &folder, Some(self.module))?;
            self.here().children.push((name.clone(), child));
        }
        Ok(())
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if only_in_tests(item) {
            if let Item::Mod(item) = item {
                for (path, inner) in self.files_of(item) {
                    let shared = self.folder.starts_with(&inner);
                    let inner = if shared { path.clone() } else { inner };
                    self.of.left_out.push((path, inner));
                }
            }
            return;
        }
        if let Some(name) = item_name(item) {
            self.here().items.insert(name);
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        if !only_in_tests(item) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        if !only_in_tests(item) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !only_in_tests(field) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !only_in_tests(variant) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !only_in_tests(arm) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast syn::Stmt) {
        if !only_in_tests(statement) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if self.failed.is_ok() {
            self.failed = self.enter(item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            let private = matches!(item.vis, syn::Visibility::Inherited);
            let kind = if private { Kind::Use } else { Kind::ReExport };
            self.import(&item.tree, &[], item.use_token.span.start().line, kind);
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        if let ("self", Some((_, name))) = (item.ident.to_string().as_str(), &item.rename) {
            self.of.own_names.insert(name.to_string());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let line = first.ident.span().start().line;
            let path = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.mention(path, line, Kind::Code);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if let Some(name) = &item.ident {
            let file = self.of.modules[self.module].file;
            self.of.macros.push((name.to_string(), file));
            self.here().items.insert(name.to_string());
        }
        visit::visit_item_macro(self, item);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        // A macro around items, such as `cfg_if`-like wrappers: items are read as items.
        match syn::parse2::<syn::File>(call.tokens.clone()) {
            Ok(file) => file.items.iter().for_each(|item| self.visit_item(item)),
            Err(_) => {
                for (path, line) in tokens::paths(call.tokens.clone()) {
                    self.mention(path, line, Kind::Code);
                }
            }
        }
        let name = call.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let line = call.bang_token.span.start().line;
        self.mention(name, line, Kind::Code);
    }

    // `pub(in crate::space)` and `#[derive(..)]` use nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

fn item_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Whether a node stands behind a `cfg` that never holds where the crate is shipped.
fn only_in_tests(node: &impl ToTokens) -> bool {
    let attributes = tokens::leading_attributes(node.to_token_stream());
    attributes.into_iter().any(|attribute| match syn::parse2::<Meta>(attribute) {
        Ok(Meta::List(list)) if list.path.is_ident("cfg") => holds(list.tokens) == Some(false),
        _ => false,
    })
}

/// Whether a condition of `cfg` holds outside of tests; `None` if that depends on something else.
fn holds(condition: TokenStream) -> Option<bool> {
    match syn::parse2::<Meta>(condition).ok()? {
        Meta::Path(path) if path.is_ident("test") || path.is_ident("doctest") => Some(false),
        Meta::List(list) => {
            let parse = Punctuated::<Meta, Token![,]>::parse_terminated;
            let parts = syn::parse::Parser::parse2(parse, list.tokens).ok()?;
            let mut parts = parts.iter().map(|part| holds(part.to_token_stream()));
            if list.path.is_ident("not") {
                return parts.next()?.map(|held| !held);
            }
            // One part that is `decides` decides over all of them.
            let decides = list.path.is_ident("any");
            let parts: Vec<_> = parts.collect();
            if parts.contains(&Some(decides)) {
                Some(decides)
            } else if parts.contains(&None) {
                None
            } else {
                Some(!decides)
            }
        }
        _ => None,
    }
}

/// The files that `#[path = ".."]` names, with or without `cfg_attr` around it.
fn paths(attributes: &[Attribute]) -> Vec<String> {
    let mut found = Vec::new();
    for attribute in attributes {
        let metas = match &attribute.meta {
            Meta::List(list) if list.path.is_ident("cfg_attr") => {
                let parse = Punctuated::<Meta, Token![,]>::parse_terminated;
                let parts = syn::parse::Parser::parse2(parse, list.tokens.clone());
                parts.map(|parts| parts.into_iter().skip(1).collect()).unwrap_or_default()
            }
            meta => vec![meta.clone()],
        };
        for meta in metas {
            if let Meta::NameValue(value) = &meta
                && value.path.is_ident("path")
                && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &value.value
            {
                found.push(text.value());
            }
        }
    }
    found
}

/// The path without `..`, as far as it can be had without asking the disk.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            part => normal.push(part),
        }
    }
    normal
}
