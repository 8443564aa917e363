//! Reads live interpreters of every known version, and recordings of them.

#[cfg(test)]
mod bindings;
#[cfg(test)]
mod images;
#[cfg(test)]
mod modules;
#[cfg(test)]
mod python;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod zoo;
