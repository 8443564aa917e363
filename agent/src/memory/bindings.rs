//! Mapped classes of SQLAlchemy 1.4, 2.0 and 2.1 (and `SQLModel`, which builds on it): the labels that a
//! process would really send.
//!
//! Found through SQLAlchemy's own registries, so that the cost is the number of mapped classes. Names of
//! attributes are SQLAlchemy's: `orm/mapper.py`, `orm/decl_api.py`, `sql/schema.py`, `sql/base.py`,
//! `sql/sqltypes.py`, `sql/type_api.py` of those versions.

use super::Error;
use super::enums::{fetch_bound, standing};
use super::heap::{DICT_TYPE, Entry, Heap, MAX_BASES, Type};
use super::modules::{ALL, Modules, Rules};
use super::source::ByAddress;
use super::value::{is_none, small};
use crate::reading::{MappedClass, MappedColumn, Standing};
use std::sync::Arc;
use unstale_protocol::binding::ColumnName;
use unstale_protocol::ids::EnumName;

/// Most mapped classes of one interpreter.
const MAX_MAPPED: usize = 20_000;
/// Most columns of one table.
const MAX_COLUMNS: u64 = 4_096;
/// Most labels of one type.
const MAX_LABELS: u64 = 65_536;
/// Most labels of all types.
const MAX_ALL_LABELS: usize = 400_000;
/// Deepest wrapping of one type in others.
const MAX_WRAPS: usize = 8;

/// What was read of the mapped classes of one interpreter.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) mapped: Vec<MappedClass>,
    /// Modules that hold them, by index, sorted.
    pub(crate) modules: Vec<usize>,
}

/// Classes of SQLAlchemy by which types are told apart.
#[derive(Debug)]
struct Kinds {
    enumeration: u64,
    array: u64,
    decorator: u64,
}

/// A mapped class that is reported.
struct Mapped {
    kind: Arc<Type>,
    name: EnumName,
    module: usize,
    manager: u64,
}

/// Reads the mapped classes of one interpreter that are wanted.
pub(crate) fn read(heap: &mut Heap<'_>, modules: &mut Modules, rules: &Rules<'_>) -> Result<Found, Error> {
    let Some(dict) = modules.dict_of(heap, "sqlalchemy.orm.mapper")? else { return Ok(Found::default()) };
    heap.fetch_dicts(&[dict], ALL)?;
    let entries = heap.entries(dict, ALL)?;
    // Older versions, and modules that are being imported, have none.
    let Some(registries) = heap.find(&entries, "_mapper_registries")? else { return Ok(Found::default()) };
    let Some(kinds) = kinds(heap, modules)? else { return Ok(Found::default()) };
    let mut managers = Vec::new();
    for registry in weak_keys(heap, registries.value)? {
        if let Some(held) = attribute(heap, registry, "_managers")? {
            managers.extend(weak_keys(heap, held)?);
        }
    }
    if managers.len() > MAX_MAPPED {
        return Err(Error::Limit("mapped classes (20,000)"));
    }
    fetch_objects(heap, &managers)?;
    let classes = select(heap, modules, rules, &managers)?;
    let mut found = Found::default();
    let mut labels = 0;
    let mut tables = Vec::with_capacity(classes.len());
    for class in &classes {
        tables.push(table_of(heap, class)?);
    }
    fetch_tables(heap, &tables.iter().flatten().copied().collect::<Vec<u64>>())?;
    for (class, table) in classes.iter().zip(tables) {
        let Some(table) = table else { continue };
        let mapped = columns(heap, &kinds, class, table)?;
        labels += mapped.bindings.iter().map(|binding| binding.labels.len()).sum::<usize>();
        if labels > MAX_ALL_LABELS {
            return Err(Error::Limit("labels of all columns (400,000)"));
        }
        found.mapped.push(mapped);
        found.modules.push(class.module);
    }
    found.mapped.sort_by(|a, b| a.name.cmp(&b.name));
    found.modules.sort_unstable();
    found.modules.dedup();
    Ok(found)
}

fn kinds(heap: &mut Heap<'_>, modules: &Modules) -> Result<Option<Kinds>, Error> {
    let (Some(types), Some(api)) =
        (modules.dict_of(heap, "sqlalchemy.sql.sqltypes")?, modules.dict_of(heap, "sqlalchemy.sql.type_api")?)
    else {
        return Ok(None);
    };
    heap.fetch_dicts(&[types, api], ALL)?;
    let types = heap.entries(types, ALL)?;
    let api = heap.entries(api, ALL)?;
    let (Some(enumeration), Some(array), Some(decorator)) =
        (heap.find(&types, "Enum")?, heap.find(&types, "ARRAY")?, heap.find(&api, "TypeDecorator")?)
    else {
        return Ok(None);
    };
    Ok(Some(Kinds { enumeration: enumeration.value, array: array.value, decorator: decorator.value }))
}

/// Returns the live keys of a `weakref.WeakKeyDictionary`: its `data` maps references to values.
fn weak_keys(heap: &mut Heap<'_>, dictionary: u64) -> Result<Vec<u64>, Error> {
    let Some(data) = attribute(heap, dictionary, "data")? else { return Ok(Vec::new()) };
    heap.fetch_dicts(&[data], ALL)?;
    heap.guard_dict(data)?;
    let entries = heap.entries(data, ALL)?;
    for entry in entries.iter() {
        heap.space.want(entry.key, heap.layout.header + 8);
    }
    heap.space.fetch()?;
    let mut keys = Vec::new();
    for entry in entries.iter() {
        let key = heap.space.pointer(entry.key + heap.layout.header)?;
        if !is_none(heap, key)? {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Fetches the attributes of many objects at once.
fn fetch_objects(heap: &mut Heap<'_>, objects: &[u64]) -> Result<(), Error> {
    for object in objects {
        heap.space.want(*object, heap.layout.header + 8);
    }
    heap.space.fetch()?;
    let mut typed = Vec::with_capacity(objects.len());
    for object in objects {
        typed.push((*object, heap.type_of(*object)?));
    }
    heap.fetch_attributes(&typed)
}

fn select(
    heap: &mut Heap<'_>,
    modules: &mut Modules,
    rules: &Rules<'_>,
    managers: &[u64],
) -> Result<Vec<Mapped>, Error> {
    let mut classes = Vec::new();
    for manager in managers {
        if let Some(class) = attribute(heap, *manager, "class_")? {
            classes.push((*manager, class));
        }
    }
    heap.fetch_heap_types(&classes.iter().map(|(_, class)| *class).collect::<Vec<_>>())?;
    let mut wanted = Vec::new();
    let mut dicts = Vec::new();
    for (manager, class) in classes {
        if heap.is_type(class)? {
            let kind = heap.type_at(class)?;
            dicts.push(kind.dict);
            wanted.push((manager, kind));
        }
    }
    heap.fetch_dicts(&dicts, ALL)?;
    heap.fetch_texts(wanted.iter().map(|(_, kind)| kind.qualname))?;
    let mut placed = Vec::new();
    for (manager, kind) in wanted {
        heap.guard_dict(kind.dict)?;
        let entries = heap.entries(kind.dict, ALL)?;
        let Some(text) = heap.find(&entries, "__module__")? else { continue };
        placed.extend(modules.of_text(heap, text.value)?.map(|index| (manager, kind, index)));
    }
    modules.place(heap, rules, &placed.iter().map(|(_, _, index)| *index).collect::<Vec<_>>())?;
    let mut named = Vec::new();
    for (manager, kind, index) in placed {
        let Some(module) = modules.list.get(index) else { continue };
        if rules.wants(module.known.origin) {
            let name = EnumName::new(&*module.known.name, &*heap.text(kind.qualname)?);
            named.push(Mapped { kind, name, module: index, manager });
        }
    }
    let mut indexes: Vec<usize> = named.iter().map(|class| class.module).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let module_dicts: ByAddress<usize, u64> = modules.dicts(heap, &indexes, ALL)?.into_iter().collect();
    let place = |class: &Mapped| (module_dicts.get(&class.module).copied(), class.kind.address);
    fetch_bound(heap, &named.iter().map(place).collect::<Vec<_>>())?;
    let mut bound = Vec::new();
    for class in named {
        let dict = module_dicts.get(&class.module).copied();
        if standing(heap, dict, &class.name.qualname, class.kind.address)? == Standing::Bound {
            modules.guard(heap, class.module);
            bound.push(class);
        }
    }
    Ok(bound)
}

/// Returns the table of a mapped class: its own `__table__`, or its mapper's where it does not share that
/// with the class that it inherits from.
fn table_of(heap: &mut Heap<'_>, class: &Mapped) -> Result<Option<u64>, Error> {
    let entries = heap.entries(class.kind.dict, ALL)?;
    if let Some(entry) = heap.find(&entries, "__table__")? {
        return Ok(Some(entry.value));
    }
    let Some(mapper) = attribute(heap, class.manager, "mapper")? else { return Ok(None) };
    if is_none(heap, mapper)? {
        return Ok(None);
    }
    let table = attribute(heap, mapper, "local_table")?;
    if let Some(parent) = attribute(heap, mapper, "inherits")?
        && !is_none(heap, parent)?
        && attribute(heap, parent, "local_table")? == table
    {
        return Ok(None);
    }
    Ok(table)
}

/// Fetches all tables' columns and their types, level by level; what cannot be read is found out about
/// when it is looked at.
fn fetch_tables(heap: &mut Heap<'_>, tables: &[u64]) -> Result<(), Error> {
    fetch_objects(heap, tables)?;
    let found = each(heap, tables, "_columns");
    fetch_objects(heap, &found)?;
    let lists = each(heap, &found, "_collection");
    for list in &lists {
        heap.space.want(*list, heap.layout.header + 16);
    }
    heap.space.fetch()?;
    for list in &lists {
        let (Ok(count), Ok(items)) =
            (heap.space.word(list + heap.layout.header), heap.space.pointer(list + heap.layout.header + 8))
        else {
            continue;
        };
        heap.space.want(items, count.min(MAX_COLUMNS) * 8);
    }
    heap.space.fetch()?;
    let mut pairs = Vec::new();
    for list in &lists {
        pairs.extend(heap.list(*list, MAX_COLUMNS).unwrap_or_default());
    }
    for pair in &pairs {
        heap.space.want_in_page(*pair, 64);
    }
    heap.space.fetch()?;
    let mut columns = Vec::with_capacity(pairs.len());
    for pair in pairs {
        columns.extend(heap.tuple(pair, 8).unwrap_or_default().get(1).copied());
    }
    fetch_objects(heap, &columns)?;
    let [names, types] = ["name", "type"].map(|name| own(heap, &columns, name));
    fetch_objects(heap, &types)?;
    let [labels, more @ ..] = ["enums", "name", "schema", "enum_class"].map(|name| own(heap, &types, name));
    for object in labels.iter().chain(more.iter().flatten()) {
        heap.space.want_in_page(*object, 96);
    }
    heap.fetch_texts(names)?;
    let mut texts = Vec::new();
    for list in labels {
        texts.extend(heap.list(list, MAX_LABELS).unwrap_or_default());
    }
    heap.fetch_texts(texts)
}

/// Returns what each object has under a name in its instance dict.
fn own(heap: &mut Heap<'_>, objects: &[u64], name: &'static str) -> Vec<u64> {
    let mut found = Vec::with_capacity(objects.len());
    for object in objects {
        if let Ok(attributes) = heap.attributes(*object)
            && let Ok(Some(entry)) = heap.find(&attributes, name)
        {
            found.push(entry.value);
        }
    }
    found
}

/// Returns an attribute of each object that has it.
fn each(heap: &mut Heap<'_>, objects: &[u64], name: &'static str) -> Vec<u64> {
    objects.iter().filter_map(|object| attribute(heap, *object, name).ok().flatten()).collect()
}

fn columns(heap: &mut Heap<'_>, kinds: &Kinds, class: &Mapped, table: u64) -> Result<MappedClass, Error> {
    let mut mapped = MappedClass { name: class.name.clone(), bindings: Vec::new(), plain_columns: Vec::new() };
    // Something else than a table (a join, a select) has no columns of its own.
    let Some(collection) = attribute(heap, table, "_columns")? else { return Ok(mapped) };
    let list = attribute(heap, collection, "_collection")?.ok_or(Error::Implausible("_collection of a table"))?;
    let pairs = heap.list(list, MAX_COLUMNS)?;
    for pair in &pairs {
        heap.space.want_in_page(*pair, 64);
    }
    heap.space.fetch()?;
    let mut columns = Vec::new();
    for pair in pairs {
        columns.extend(heap.tuple(pair, 8)?.get(1).copied());
    }
    fetch_objects(heap, &columns)?;
    let mut named = Vec::new();
    for column in columns {
        let attributes = heap.attributes(column)?;
        let (Some(name), Some(kind)) = (heap.find(&attributes, "name")?, heap.find(&attributes, "type")?) else {
            return Err(Error::Implausible("attributes of a column"));
        };
        let Some(name) = heap.key_text(name.value)? else { continue };
        named.push((name.to_string(), kind.value));
    }
    let types: Vec<u64> = named.iter().map(|(_, kind)| *kind).collect();
    fetch_objects(heap, &types)?;
    for (column, kind) in named {
        match enumeration(heap, kinds, kind)? {
            Some(attributes) => {
                let column =
                    ColumnName { module: class.name.module.clone(), class: class.name.qualname.clone(), column };
                mapped.bindings.push(binding(heap, column, &attributes)?);
            }
            None => mapped.plain_columns.push(column),
        }
    }
    Ok(mapped)
}

/// Returns the attributes of the `Enum` type within a column's type.
fn enumeration(heap: &mut Heap<'_>, kinds: &Kinds, object: u64) -> Result<Option<Arc<[Entry]>>, Error> {
    let mut object = object;
    for _ in 0..MAX_WRAPS {
        let kind = heap.type_of(object)?;
        let attributes = heap.attributes(object)?;
        if heap.derives(&kind, kinds.enumeration)? {
            return Ok(heap.find(&attributes, "enums")?.is_some().then_some(attributes));
        }
        let variants = match heap.find(&attributes, "_variant_mapping")? {
            Some(entry) => Some(entry),
            None => heap.find(&attributes, "mapping")?,
        };
        let inner = match variants {
            Some(variants) => postgresql(heap, variants.value)?,
            None => None,
        };
        object = match inner {
            Some(inner) => inner,
            None if heap.derives(&kind, kinds.array)? => match heap.find(&attributes, "item_type")? {
                Some(item) => item.value,
                None => return Ok(None),
            },
            None if heap.derives(&kind, kinds.decorator)? => match heap.find(&attributes, "impl")? {
                Some(inner) => inner.value,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
    }
    Ok(None)
}

/// Returns the variant of a type for PostgreSQL.
fn postgresql(heap: &mut Heap<'_>, variants: u64) -> Result<Option<u64>, Error> {
    if heap.type_of(variants)?.flags & DICT_TYPE == 0 {
        return Ok(None);
    }
    let entries = heap.entries(variants, ALL)?;
    Ok(heap.find_text(&entries, "postgresql")?.map(|entry| entry.value))
}

fn binding(heap: &mut Heap<'_>, column: ColumnName, attributes: &[Entry]) -> Result<MappedColumn, Error> {
    let mut labels = Vec::new();
    if let Some(entry) = heap.find(attributes, "enums")? {
        let items = match &*heap.type_of(entry.value)?.name {
            "tuple" => heap.tuple(entry.value, MAX_LABELS)?,
            "list" => heap.list(entry.value, MAX_LABELS)?,
            _ => return Err(Error::Implausible("enums of a type")),
        };
        heap.fetch_texts(items.iter().copied())?;
        for item in items {
            let label = heap.key_text(item)?.map_or_else(|| "\u{fffd}".to_owned(), |text| text.to_string());
            labels.push(label);
        }
    }
    // `postgresql.ENUM` has it on the class only in some versions, where it is true.
    let native = match heap.find(attributes, "native_enum")? {
        Some(entry) => small(heap, entry.value)? != Some(0),
        None => true,
    };
    let class = match heap.find(attributes, "enum_class")? {
        Some(entry) if !is_none(heap, entry.value)? && heap.is_type(entry.value)? => Some(entry.value),
        _ => None,
    };
    let enum_name = match class {
        Some(class) => enum_name(heap, class)?,
        None => None,
    };
    Ok(MappedColumn {
        column,
        type_name: text(heap, attributes, "name")?,
        schema: text(heap, attributes, "schema")?,
        native,
        enum_name,
        enum_address: class,
        labels,
    })
}

fn enum_name(heap: &mut Heap<'_>, class: u64) -> Result<Option<EnumName>, Error> {
    let kind = heap.type_at(class)?;
    if kind.qualname == 0 || kind.dict == 0 {
        return Ok(None);
    }
    let entries = heap.entries(kind.dict, ALL)?;
    let Some(module) = heap.find(&entries, "__module__")? else { return Ok(None) };
    let (Some(module), Some(qualname)) = (heap.key_text(module.value)?, heap.key_text(kind.qualname)?) else {
        return Ok(None);
    };
    Ok(Some(EnumName::new(&*module, &*qualname)))
}

fn text(heap: &mut Heap<'_>, attributes: &[Entry], name: &'static str) -> Result<Option<String>, Error> {
    match heap.find(attributes, name)? {
        Some(entry) => Ok(heap.key_text(entry.value)?.map(|text| text.to_string())),
        None => Ok(None),
    }
}

/// Reads an attribute of an object: from its instance dict, else through `__slots__`.
fn attribute(heap: &mut Heap<'_>, object: u64, name: &'static str) -> Result<Option<u64>, Error> {
    let attributes = heap.attributes(object)?;
    if let Some(entry) = heap.find(&attributes, name)? {
        return Ok(Some(entry.value));
    }
    slot(heap, object, name)
}

/// Reads a slot: the offset stands in a `member_descriptor` in the dict of one of the type's bases
/// (`PyMemberDescrObject` in `Include/descrobject.h`, `PyMemberDef` in `Include/structmember.h`).
fn slot(heap: &mut Heap<'_>, object: u64, name: &'static str) -> Result<Option<u64>, Error> {
    let kind = heap.type_of(object)?;
    if kind.mro == 0 {
        return Ok(None);
    }
    for base in heap.tuple(kind.mro, MAX_BASES)? {
        let base = heap.type_at(base)?;
        if base.dict == 0 || base.qualname == 0 {
            continue;
        }
        let entries = heap.entries(base.dict, ALL)?;
        let Some(entry) = heap.find(&entries, name)? else { continue };
        if !heap.type_of(entry.value)?.is_builtin("member_descriptor") {
            return Ok(None);
        }
        let definition = heap.space.pointer(entry.value + heap.layout.header + 24)?;
        let offset = heap.space.word(definition + 16)?;
        if offset >= kind.basic_size {
            return Err(Error::Implausible("offset of a slot"));
        }
        let value = heap.space.pointer_or_null(object.wrapping_add(offset))?;
        return Ok((value != 0).then_some(value));
    }
    Ok(None)
}
