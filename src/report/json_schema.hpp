// Validates JSON against JSON Schema (draft 2020-12, what this project's schemas use of it). Not a general
// validator: a keyword it does not know is an error, never ignored, so a schema cannot check less than it
// says.
//
// Known: type, enum, const; properties, required, additionalProperties, patternProperties, propertyNames,
// minProperties, maxProperties; items, prefixItems, minItems, maxItems, uniqueItems; minimum, maximum,
// exclusiveMinimum, exclusiveMaximum, multipleOf; minLength, maxLength, pattern; anyOf, oneOf, allOf, not,
// if, then, else; $ref inside the schema, $defs. Annotations (title, description, default, examples, format,
// …) say nothing.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace attnbench {

/// What is wrong, "/cases/0/status: 'okay' is none of …", in the order of the text; empty: valid. Throws
/// DataError when `json_text` is not JSON and Error when the schema itself is broken.
std::vector<std::string> validate_json(std::string_view schema_text, std::string_view json_text);

}  // namespace attnbench
