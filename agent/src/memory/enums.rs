//! Enum classes: found through the subclasses of `enum.Enum`, read from their own dicts.
//!
//! Walking the subclasses costs the number of enums, not of modules, and finds nested and function-local
//! classes. A class counts as read only if its module's name still leads to it: half-built and dying
//! classes can be stable for a while, but are never bound.

use super::Error;
use super::heap::{Entry, Heap, MAX_BASES, SUBCLASSES, TYPE_AND_LENGTH, Type};
use super::modules::{ALL, Modules, Rules};
use super::source::{ByAddress, Span};
use super::value::Values;
use crate::reading::{LoadedEnum, Standing};
use std::collections::BTreeSet;
use std::sync::Arc;
use unstale_protocol::enumdef::{Alias, EnumDef, Member};
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::Value;

/// Most classes below `enum.Enum`.
const MAX_CLASSES: usize = 10_000;
/// Deepest tree of classes.
const MAX_LEVELS: usize = 64;
/// Most names of one class.
const MAX_NAMES: u64 = 65_536;
/// Most names of all classes.
const MAX_ALL_NAMES: usize = 200_000;
/// Most parts of a qualified name.
const MAX_PARTS: usize = 32;

/// A class that is reported.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) address: u64,
    kind: Arc<Type>,
    pub(crate) name: EnumName,
    /// Its module, by index in `Modules::list`.
    pub(crate) module: Option<usize>,
    pub(crate) standing: Standing,
}

/// What was read of the enums of one interpreter.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) enums: Vec<LoadedEnum>,
    /// Modules that hold them, by index.
    pub(crate) modules: Vec<usize>,
    /// Classes that are not bound, by place in `enums`, and what must hold still for them to count.
    pub(crate) unbound: Vec<(usize, Vec<Span>)>,
}

/// Finds the class `enum.Enum` of an interpreter.
pub(crate) fn root(heap: &mut Heap<'_>, modules: &Modules) -> Result<u64, Error> {
    let starting = || Error::Starting("enum is not imported yet".to_owned());
    let dict = modules.dict_of(heap, "enum")?.ok_or(Error::NoEnum)?;
    heap.fetch_dicts(&[dict], ALL)?;
    let entries = heap.entries(dict, ALL)?;
    let found = heap.find(&entries, "Enum")?.ok_or_else(starting)?;
    if is_root(heap, found.value)? { Ok(found.value) } else { Err(starting()) }
}

/// Tells whether an object is `enum.Enum`.
pub(crate) fn is_root(heap: &mut Heap<'_>, object: u64) -> Result<bool, Error> {
    let meta = heap.type_of(object)?;
    if !matches!(&*meta.name, "EnumMeta" | "EnumType") {
        return Ok(false);
    }
    Ok(&*heap.type_at(object)?.name == "Enum")
}

/// Lists the classes below a class, breadth first.
fn subclasses(heap: &mut Heap<'_>, root: u64) -> Result<Vec<Arc<Type>>, Error> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut level = vec![root];
    for _ in 0..MAX_LEVELS {
        if level.is_empty() {
            return Ok(found);
        }
        let dicts = subclass_dicts(heap, &level, &mut found)?;
        heap.fetch_dicts(&dicts, ALL)?;
        let mut references = Vec::new();
        for dict in dicts {
            heap.guard_dict(dict)?;
            references.extend(heap.entries(dict, ALL)?.iter().map(|entry| entry.value));
        }
        for reference in &references {
            heap.space.want(*reference, heap.layout.header + 8);
        }
        heap.space.fetch()?;
        let mut next = Vec::new();
        for reference in references {
            // `PyWeakReference.wr_object`; `None` once the class is dead.
            let class = heap.space.pointer(reference + heap.layout.header)?;
            if seen.insert(class) {
                next.push(class);
            }
        }
        if seen.len() > MAX_CLASSES {
            return Err(Error::Limit("enum classes (10,000)"));
        }
        heap.fetch_heap_types(&next)?;
        level.clear();
        for class in next {
            if heap.is_type(class)? {
                level.push(class);
            }
        }
    }
    Err(Error::Limit("levels of enum classes (64)"))
}

/// Returns the dicts of direct subclasses. A class that appears or goes while the walk is under way changes
/// one of them, or gives its base the first one: what is bound then may not be in the tree.
fn subclass_dicts(heap: &mut Heap<'_>, level: &[u64], found: &mut Vec<Arc<Type>>) -> Result<Vec<u64>, Error> {
    let mut dicts = Vec::new();
    for class in level {
        let kind = heap.type_at(*class)?;
        heap.space.guard(class + heap.layout.header + SUBCLASSES, 8);
        if kind.subclasses != 0 {
            dicts.push(kind.subclasses);
        }
        found.push(kind);
    }
    Ok(dicts)
}

/// Reads the enums of one interpreter that are wanted.
pub(crate) fn read(heap: &mut Heap<'_>, modules: &mut Modules, rules: &Rules<'_>, root: u64) -> Result<Found, Error> {
    let tree = subclasses(heap, root)?;
    if tree.len() < 2 {
        return Err(Error::Starting("enum has no classes yet".to_owned()));
    }
    let mut classes = select(heap, modules, rules, &tree)?;
    let indexes = module_indexes(&classes);
    let dicts: ByAddress<usize, u64> = modules.dicts(heap, &indexes, ALL)?.into_iter().collect();
    let qualnames: Vec<u64> = classes.iter().map(|class| class.kind.qualname).collect();
    heap.fetch_texts(qualnames)?;
    let place = |class: &Class| (class.module.and_then(|index| dicts.get(&index)).copied(), class.address);
    fetch_bound(heap, &classes.iter().map(place).collect::<Vec<_>>())?;
    for class in &mut classes {
        class.name.qualname = heap.text(class.kind.qualname)?.to_string();
        let dict = class.module.and_then(|index| dicts.get(&index)).copied();
        class.standing = standing(heap, dict, &class.name.qualname, class.address)?;
        if class.standing == Standing::Bound
            && let Some(index) = class.module
        {
            modules.guard(heap, index);
        }
    }
    members(heap, modules, &classes)
}

fn module_indexes(classes: &[Class]) -> Vec<usize> {
    let mut indexes: Vec<usize> = classes.iter().filter_map(|class| class.module).collect();
    indexes.sort_unstable();
    indexes.dedup();
    indexes
}

/// Picks the classes of wanted modules.
fn select(
    heap: &mut Heap<'_>,
    modules: &mut Modules,
    rules: &Rules<'_>,
    tree: &[Arc<Type>],
) -> Result<Vec<Class>, Error> {
    const EARLY: u64 = 8;
    let dicts: Vec<u64> = tree.iter().map(|kind| kind.dict).filter(|dict| *dict != 0).collect();
    heap.fetch_dicts(&dicts, EARLY)?;
    let mut named = Vec::new();
    let mut indexes = Vec::new();
    for kind in tree.iter().filter(|kind| kind.dict != 0) {
        // A class that is passed over must be one to pass over.
        heap.guard_dict(kind.dict)?;
        if let Some(text) = module_of(heap, kind.dict, EARLY)? {
            let module = modules.of_text(heap, text)?;
            let above = match module {
                None => heap.key_text(text)?.and_then(|name| modules.above(&name)),
                Some(_) => None,
            };
            indexes.extend(module.or(above));
            named.push((kind, text, module));
        }
    }
    modules.place(heap, rules, &indexes)?;
    let mut classes = Vec::new();
    for (kind, text, module) in named {
        let origin = match module.and_then(|index| modules.list.get(index)) {
            Some(module) => module.known.origin,
            None => match heap.key_text(text)? {
                Some(name) => modules.origin_of_name(&name),
                None => continue,
            },
        };
        let wanted = rules.wants(origin);
        if !wanted {
            continue;
        }
        let Some(name) = heap.key_text(text)? else { continue };
        if &*name != "enum" {
            classes.push(Class {
                address: kind.address,
                kind: Arc::clone(kind),
                name: EnumName::new(&*name, ""),
                module,
                standing: Standing::Unreachable,
            });
        }
    }
    Ok(classes)
}

/// Returns the text object `__module__` of a class's dict.
fn module_of(heap: &mut Heap<'_>, dict: u64, early: u64) -> Result<Option<u64>, Error> {
    let entries = heap.entries(dict, early)?;
    if let Some(entry) = heap.find(&entries, "__module__")? {
        return Ok(Some(entry.value));
    }
    let entries = heap.entries(dict, ALL)?;
    Ok(heap.find(&entries, "__module__")?.map(|entry| entry.value))
}

/// Fetches the names under which classes hang in their modules.
pub(crate) fn fetch_bound(heap: &mut Heap<'_>, places: &[(Option<u64>, u64)]) -> Result<(), Error> {
    let mut names = Vec::with_capacity(places.len());
    for (dict, class) in places {
        if let Some(dict) = dict {
            let entries = heap.entries(*dict, ALL)?;
            names.extend(entries.iter().filter(|entry| entry.value == *class).map(|entry| entry.key));
        }
    }
    heap.fetch_texts(names)
}

/// Finds out where a class hangs, and guards the way to it where it is bound.
pub(crate) fn standing(
    heap: &mut Heap<'_>,
    module_dict: Option<u64>,
    qualname: &str,
    class: u64,
) -> Result<Standing, Error> {
    let Some(mut dict) = module_dict else { return Ok(Standing::Unreachable) };
    let parts: Vec<&str> = qualname.split('.').take(MAX_PARTS + 1).collect();
    if parts.len() > MAX_PARTS || parts.contains(&"<locals>") {
        return Ok(Standing::Unreachable);
    }
    let before = heap.space.guarded();
    let Some((last, outer)) = parts.split_last() else { return Ok(Standing::Unreachable) };
    for part in outer {
        let entries = heap.entries(dict, ALL)?;
        let Some(entry) = heap.find_text(&entries, part)? else {
            heap.space.release(before);
            return Ok(Standing::Unreachable);
        };
        if !heap.is_type(entry.value)? {
            heap.space.release(before);
            return Ok(Standing::Unreachable);
        }
        heap.guard_table(dict)?;
        heap.space.guard(entry.slot, 16);
        dict = heap.type_at(entry.value)?.dict;
        if dict == 0 {
            heap.space.release(before);
            return Ok(Standing::Unreachable);
        }
    }
    let entries = heap.entries(dict, ALL)?;
    for entry in entries.iter().filter(|entry| entry.value == class) {
        if heap.key_text(entry.key)?.is_some_and(|text| &*text == *last) {
            heap.guard_table(dict)?;
            heap.space.guard(entry.slot, 16);
            return Ok(Standing::Bound);
        }
    }
    heap.space.release(before);
    match heap.find_text(&entries, last)? {
        Some(entry) if heap.is_type(entry.value)? => Ok(Standing::Twin),
        _ => Ok(Standing::Unreachable),
    }
}

/// A class with what its `_member_map_` holds.
#[derive(Debug, Default)]
struct Names {
    /// Name and member, in the map's order.
    pairs: Arc<[Entry]>,
    /// The guards of an unbound class.
    guards: Vec<Span>,
    /// The class could not be read: it is half-built or dying.
    damaged: bool,
}

fn members(heap: &mut Heap<'_>, modules: &Modules, classes: &[Class]) -> Result<Found, Error> {
    let dicts: Vec<u64> = classes.iter().map(|class| class.kind.dict).collect();
    heap.fetch_dicts(&dicts, ALL)?;
    let mut maps = Vec::with_capacity(classes.len());
    for class in classes {
        let map = map_of(heap, class);
        maps.push(tolerate(map, class)?);
    }
    let found: Vec<u64> = maps.iter().flatten().copied().collect();
    heap.fetch_dicts(&found, ALL)?;
    let mut all_names = 0;
    let mut names = Vec::with_capacity(classes.len());
    for (class, map) in classes.iter().zip(maps) {
        let read = match map {
            None => Ok(Names { damaged: true, ..Names::default() }),
            Some(map) => names_of(heap, class, map),
        };
        let read = tolerate(read, class)?.unwrap_or(Names { damaged: true, ..Names::default() });
        all_names += read.pairs.len();
        if all_names > MAX_ALL_NAMES {
            return Err(Error::Limit("members of all enums (200,000)"));
        }
        names.push(read);
    }
    fetch_members(heap, &names)?;
    let mut members = Vec::with_capacity(classes.len());
    for (class, names) in classes.iter().zip(&names) {
        let own = own(heap, &names.pairs);
        let own = tolerate(own, class)?;
        if class.standing == Standing::Bound {
            guard_values(heap, own.iter().flatten());
        }
        members.push(own);
    }
    let wanted: Vec<u64> =
        members.iter().flatten().flatten().map(|own| own.value).filter(|value| *value != 0).collect();
    Values::fetch(heap, &wanted)?;
    let mut values = Values::default();
    let mut found = Found::default();
    for ((class, names), own) in classes.iter().zip(names).zip(members) {
        let Some(own) = own.filter(|own| !names.damaged && !own.is_empty()) else { continue };
        let definition = define(heap, &mut values, class, &names.pairs, &own);
        let Some(definition) = tolerate(definition, class)? else { continue };
        let Some(bases) = tolerate(bases(heap, &class.kind), class)? else { continue };
        found.modules.extend(class.module);
        if class.standing != Standing::Bound {
            found.unbound.push((found.enums.len(), names.guards));
        }
        let module_key =
            class.module.and_then(|index| modules.list.get(index)).map(|module| module.known.name.to_string());
        found.enums.push(LoadedEnum {
            name: class.name.clone(),
            module_key,
            bases,
            definition,
            standing: class.standing,
            address: class.address,
        });
    }
    Ok(found)
}

/// What is wrong with a class that is not bound makes it uninteresting; with a bound one it is an error.
fn tolerate<T>(result: Result<T, Error>, class: &Class) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::Unmapped(_) | Error::Implausible(_)) if class.standing != Standing::Bound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the dict `_member_map_` of a class.
fn map_of(heap: &mut Heap<'_>, class: &Class) -> Result<u64, Error> {
    let entries = heap.entries(class.kind.dict, ALL)?;
    match heap.find(&entries, "_member_map_")? {
        Some(entry) => Ok(entry.value),
        None => Err(Error::Implausible("enum without _member_map_")),
    }
}

fn names_of(heap: &mut Heap<'_>, class: &Class, map: u64) -> Result<Names, Error> {
    if heap.type_of(map)?.flags & super::heap::DICT_TYPE == 0 {
        return Err(Error::Implausible("_member_map_"));
    }
    let pairs = heap.entries(map, MAX_NAMES + 1)?;
    if pairs.len() as u64 > MAX_NAMES {
        return Err(Error::Limit("members of one enum (65,536)"));
    }
    let before = heap.space.guarded();
    let start = heap.layout.ob_type();
    let len = usize::try_from(heap.layout.heap_type_end() - start).unwrap_or(0);
    heap.space.guard(class.address + start, len);
    heap.guard_dict(class.kind.dict)?;
    heap.guard_dict(map)?;
    let guards = if class.standing == Standing::Bound { Vec::new() } else { heap.space.take_guards(before) };
    Ok(Names { pairs, guards, damaged: false })
}

fn fetch_members(heap: &mut Heap<'_>, names: &[Names]) -> Result<(), Error> {
    let members: Vec<u64> = names.iter().flat_map(|names| names.pairs.iter()).map(|pair| pair.value).collect();
    for member in &members {
        heap.space.want(*member, heap.layout.header + 8);
    }
    for pair in names.iter().flat_map(|names| names.pairs.iter()) {
        heap.space.want_in_page(pair.key, 80);
    }
    heap.space.fetch()?;
    let mut typed = Vec::with_capacity(members.len());
    for member in members {
        if let Ok(kind) = heap.type_of(member) {
            typed.push((member, kind));
        }
    }
    heap.fetch_attributes(&typed)
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    /// The text `_name_`, or 0.
    name: u64,
    /// The object `_value_`, or 0.
    value: u64,
}

/// Reads what the members of one class say of themselves.
fn own(heap: &mut Heap<'_>, pairs: &[Entry]) -> Result<Vec<Own>, Error> {
    let mut found = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let attributes = heap.attributes(pair.value)?;
        let name = heap.find(&attributes, "_name_")?.map_or(0, |entry| entry.value);
        let value = heap.find(&attributes, "_value_")?.map_or(0, |entry| entry.value);
        found.push(Own { name, value });
    }
    Ok(found)
}

/// Guards what the values of a bound class are: type and length. A value that was freed and made anew while it was
/// read is another object, although class and map came out as they were.
fn guard_values<'o>(heap: &mut Heap<'_>, members: impl Iterator<Item = &'o Own>) {
    for own in members.filter(|own| own.value != 0) {
        let at = own.value + heap.layout.ob_type();
        heap.space.guard(at, TYPE_AND_LENGTH);
    }
}

fn define(
    heap: &mut Heap<'_>,
    values: &mut Values,
    class: &Class,
    pairs: &[Entry],
    own: &[Own],
) -> Result<EnumDef, Error> {
    let mut definition = EnumDef::default();
    for (pair, own) in pairs.iter().zip(own) {
        let name = heap.text(pair.key)?;
        let canonical = match own.name {
            0 => None,
            text if text == pair.key => None,
            text => heap.key_text(text)?.filter(|own| *own != name),
        };
        if let Some(canonical) = canonical {
            definition.aliases.push(Alias { name: name.to_string(), canonical: canonical.to_string() });
            continue;
        }
        let value = match own.value {
            0 => Value::Opaque { type_name: class.kind.short_name().to_owned() },
            value => values.read(heap, value)?,
        };
        definition.members.push(Member { name: name.to_string(), value });
    }
    Ok(definition)
}

fn bases(heap: &mut Heap<'_>, kind: &Type) -> Result<Vec<String>, Error> {
    if kind.bases == 0 {
        return Ok(Vec::new());
    }
    let bases = heap.tuple(kind.bases, MAX_BASES)?;
    bases.into_iter().map(|base| Ok(heap.type_at(base)?.short_name().to_owned())).collect()
}
