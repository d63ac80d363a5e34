//! The derive macro of Brigade's [`Output`](derive@Output) trait.

use proc_macro::TokenStream;
use quote::quote;
use syn::{DeriveInput, Path, parse_macro_input, parse_quote};

/// Lets a component return a type: its value is emitted as JSON. The type also needs
/// `serde::Serialize`. A generic type states that bound itself, as in
/// `struct Page<T: serde::Serialize> { .. }`.
///
/// `#[brigade(crate = "path")]` sets a root other than `::brigade`, for crates that re-export it.
#[proc_macro_derive(Output, attributes(brigade))]
pub fn output(item: TokenStream) -> TokenStream {
    let input = parse_macro_input!(item as DeriveInput);
    match expand(input) {
        Ok(tokens) => tokens,
        Err(error) => error.into_compile_error().into(),
    }
}

fn expand(mut input: DeriveInput) -> syn::Result<TokenStream> {
    let mut root: Path = parse_quote!(::brigade);
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("brigade")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(meta.error("expected `crate = \"path\"`"));
            }
            let text: syn::LitStr = meta.value()?.parse()?;
            root = text.parse()?;
            Ok(())
        })?;
    }
    let name = &input.ident;
    let own: syn::Type = {
        let (_, arguments, _) = input.generics.split_for_impl();
        parse_quote!(#name #arguments)
    };
    let bounds = input.generics.make_where_clause();
    bounds.predicates.push(parse_quote!(#own: ::core::marker::Send + 'static));
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics #root::component::Output for #name #arguments #bounds {
            fn into_emit(self) -> #root::component::Emit {
                #root::component::Emit::typed(self)
            }
        }
    }
    .into())
}
