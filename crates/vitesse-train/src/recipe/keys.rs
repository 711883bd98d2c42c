//! From TOML text to the tables of a recipe: presets under the file, overrides over it, unknown keys refused by name.

use serde::de::value::Error as Stop;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use toml::{Table, Value};

use crate::{Error, Result};

/// Parses `text`, the content of the file `name`.
pub(super) fn table(text: &str, name: &str) -> Result<Table> {
    let fail = |error: toml::de::Error| Error::RecipeSyntax {
        name: name.to_owned(),
        detail: error.to_string(),
    };
    text.parse::<Table>().map_err(fail)
}

/// Sets `key`, such as `train.epochs`, in the table of a recipe. Of two keys that exclude each other, it takes the place of
/// either. What a table should be and is not is refused when the recipe is read.
pub fn set(root: &mut Table, key: &str, value: Value) {
    let other = match key {
        "model.name" => Some("checkpoint"),
        "model.checkpoint" => Some("name"),
        "data.limit" => Some("shots"),
        "data.shots" => Some("limit"),
        _ => None,
    };
    if let (Some(other), Some((table, _))) = (other, key.split_once('.'))
        && let Some(Value::Table(table)) = root.get_mut(table)
    {
        table.remove(other);
    }
    put(root, key, value);
}

fn put(root: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            root.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = root.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Puts the values of `over` over those of `base`, table by table.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Takes tables out of a recipe; what is left in the end is unknown.
pub(super) struct Reader<'a> {
    root: Table,
    name: &'a str,
    tables: Vec<(&'static str, Vec<&'static str>)>,
}

impl<'a> Reader<'a> {
    /// Over `root`, the content of the file `name`, whose `tables` may have these keys.
    pub(super) fn new(root: Table, name: &'a str, tables: Vec<(&'static str, Vec<&'static str>)>) -> Self {
        Reader { root, name, tables }
    }

    /// The table `[key]`, or its default.
    pub(super) fn table<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        let table = match self
            .root
            .remove(key)
            .unwrap_or_else(|| Value::Table(Table::new()))
        {
            Value::Table(table) => table,
            _ => return Err(self.no_table(key)),
        };
        let known = self
            .tables
            .iter()
            .filter(|(table, _)| *table == key)
            .flat_map(|(_, keys)| keys);
        let known: Vec<&str> = known.copied().collect();
        if let Some(unknown) = table.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(self.unknown(format!("{key}.{unknown}"), unknown));
        }
        let read = Value::Table(table).try_into::<T>();
        read.map_err(|error| {
            self.syntax(format!(
                "[{key}] {}",
                error.to_string().trim_end().replace('\n', " ")
            ))
        })
    }

    /// The table `[key]` as it is, whatever its keys, if it is there.
    pub(super) fn opaque(&mut self, key: &str) -> Result<Option<Table>> {
        match self.root.remove(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(table)),
            Some(_) => Err(self.no_table(key)),
        }
    }

    /// Refuses what no table was asked for.
    pub(super) fn finish(self) -> Result<()> {
        match self.root.keys().next() {
            Some(key) => Err(self.unknown(key.clone(), key)),
            None => Ok(()),
        }
    }

    fn unknown(&self, key: String, bare: &str) -> Error {
        Error::RecipeKey {
            name: self.name.to_owned(),
            key,
            hint: self.hint(bare),
        }
    }

    /// Where a key was probably meant to stand, or how it was meant to be spelt.
    fn hint(&self, key: &str) -> String {
        let all = || {
            self.tables
                .iter()
                .flat_map(|(table, keys)| keys.iter().map(move |key| (*table, *key)))
        };
        if let Some((table, _)) = all().find(|(_, other)| *other == key) {
            return format!("; it belongs in [{table}]");
        }
        let tables = self.tables.iter().map(|(table, _)| *table);
        let best = all()
            .map(|(table, name)| (strsim::jaro_winkler(key, name), format!("`{table}.{name}`")))
            .chain(tables.map(|table| (strsim::jaro_winkler(key, table), format!("[{table}]"))))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match best {
            Some((score, name)) if score > 0.8 => format!("; did you mean {name}?"),
            _ => String::new(),
        }
    }

    fn no_table(&self, key: &str) -> Error {
        self.syntax(format!("`{key}` should be a table, [{key}]"))
    }

    fn syntax(&self, detail: String) -> Error {
        Error::RecipeSyntax {
            name: self.name.to_owned(),
            detail,
        }
    }
}

/// Whether the field `key` of a struct whose other fields have defaults can have `value`, as far as its type says.
pub(super) fn takes<T: DeserializeOwned>(key: &str, value: &Value) -> bool {
    let table = Table::from_iter([(key.to_owned(), value.clone())]);
    Value::Table(table).try_into::<T>().is_ok()
}

/// The names of a struct's fields: what its deserialisation asks for.
pub(super) fn fields<T: DeserializeOwned>() -> Vec<&'static str> {
    let mut names = Vec::new();
    // It always stops with an error, having noted the names.
    let _ = T::deserialize(Fields(&mut names));
    names
}

struct Fields<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> std::result::Result<V::Value, Stop> {
        Err(Stop::custom("only the names of fields are asked for"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, Stop> {
        *self.0 = fields.to_vec();
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
