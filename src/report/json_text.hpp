// Places inside JSON texts: where a JSON Pointer leads to, for error messages. Not a parser: the text must be
// valid.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace attnbench {

/// "a/b" as one step of a JSON Pointer: "a~1b" (RFC 6901).
std::string pointer_step(std::string_view key);
/// Byte offset of the value at `pointer`, or of the deepest existing value on the way to it.
size_t json_offset(std::string_view text, std::string_view pointer);
/// Byte offset of the first bracket that opens more than `limit` levels; npos: none. Deeper texts would take
/// the stack away under recursive code, the JSON library's own included; check before parsing what others
/// wrote.
size_t too_deep(std::string_view text, size_t limit);
/// "line 3, column 7" of a byte offset, 1-based.
std::string line_and_column(std::string_view text, size_t offset);

}  // namespace attnbench
