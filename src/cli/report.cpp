// attnbench report: finished results in another form.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "cli/arguments.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/atomic_file.hpp"
#include "kernels/core/error.hpp"
#include "report/book.hpp"
#include "report/files.hpp"
#include "report/format.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> results;
  std::string output;
  std::vector<std::string> formats, books;
};

const Format& format_of(const std::string& word) { return find_format(word == "md" ? "markdown" : word); }

/// What is written where; an empty path is stdout.
struct Target {
  const Format* format;
  size_t result;
  std::string path;
};

std::vector<Target> targets_of(const Options& o, const GlobalOptions& global) {
  std::vector<const Format*> formats;
  for (const std::string& list : o.formats)
    for (const std::string& word : comma_list("--format", list)) formats.push_back(&format_of(word));
  std::vector<Target> targets;
  std::error_code failed;
  if (o.output.empty()) {
    if (formats.empty()) formats.push_back(&find_format(global.json ? "json" : "table"));
    if (formats.size() > 1 || o.results.size() > 1)
      throw UsageError("several texts cannot share stdout; --output FOLDER/ gives each its file");
    return {{formats.front(), 0, ""}};
  }
  if (!o.output.ends_with('/') && !fs::is_directory(o.output, failed)) {
    if (o.results.size() > 1 || formats.size() > 1)
      throw UsageError("--output: several texts need a folder; '" + o.output +
                       "' is none (end it with a '/')");
    return {{formats.empty() ? &format_of_file(o.output) : formats.front(), 0, o.output}};
  }
  if (formats.empty()) formats.push_back(&find_format("html"));
  for (size_t i = 0; i < o.results.size(); ++i)
    for (const Format* f : formats) {
      if (f->extension().empty())
        throw UsageError("--format: '" + f->id() +
                         "' has no file ending; name the file itself with --output");
      const fs::path path = fs::path(o.output) / (fs::path(o.results[i]).stem().string() + f->extension());
      for (const Target& t : targets)
        if (t.path == path.string())
          throw UsageError("'" + o.results[t.result] + "' and '" + o.results[i] + "' would both write " +
                           t.path);
      targets.push_back({f, i, path.string()});
    }
  return targets;
}

/// All results as one text: a page or Markdown, by the file's name.
int write_books(const Options& o, const GlobalOptions& global) {
  if (!o.output.empty() || !o.formats.empty())
    throw UsageError("--book is a text of its own: --output and --format do not go with it");
  std::error_code failed;
  for (const std::string& book : o.books) {
    if (!book.ends_with(".html") && !book.ends_with(".md"))
      throw UsageError("--book: '" + book + "' tells no form; its name must end in .html or .md");
    for (const std::string& r : o.results)
      if (fs::equivalent(r, book, failed))
        throw UsageError("--book: '" + book + "' is one of the results themselves");
    require_writable(book);
  }
  std::vector<RunResult> runs;
  for (const std::string& r : o.results) runs.push_back(run_from_json(read_file(r), r));
  const Book book = make_book(runs);
  for (const std::string& path : o.books) {
    write_file_atomically(path, path.ends_with(".html") ? book_html(book) : book_markdown(book));
    note(global.quiet, "wrote " + path);
  }
  return kDone;
}

int report(const Options& o, const GlobalOptions& global) {
  if (!o.books.empty()) return write_books(o, global);
  const std::vector<Target> targets = targets_of(o, global);
  std::error_code failed;
  for (const Target& t : targets) {
    if (t.path.empty()) continue;
    for (const std::string& r : o.results)
      if (fs::equivalent(r, t.path, failed))
        throw UsageError("--output: '" + t.path + "' is one of the results themselves");
    if (o.output.ends_with('/')) fs::create_directories(o.output);
    require_writable(t.path);
  }
  std::vector<RunResult> runs;
  for (const std::string& r : o.results) runs.push_back(run_from_json(read_file(r), r));
  for (const Target& t : targets) {
    if (t.path.empty()) {
      print_data(t.format->write(runs[t.result], {.color = global.color, .width = stdout_width()}));
    } else {
      write_file_atomically(t.path, t.format->write(runs[t.result]));
      note(global.quiet, "wrote " + t.path);
    }
  }
  return kDone;
}

std::string format_help() {
  std::string out = "formats, separated by commas; default: by the output's name, else table:";
  for (const Format* f : all_formats()) out += "\n" + f->id() + ": " + f->summary();
  return out;
}

const bool registered = register_command(
    {.name = "report",
     .order = 15,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("RESULT", o->results, "results files of `attnbench run`")
               ->required()
               ->type_name("FILE");
           sub.add_option("-o,--output", o->output,
                          "a file, whose name tells the format, or a folder; default stdout")
               ->type_name("FILE");
           sub.add_option("-f,--format", o->formats, format_help())
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("FORMAT");
           sub.add_option("--book", o->books,
                          "all results as one text, published beside measured: .html or "
                          ".md; repeatable")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("FILE");
           sub.footer(
               "Examples:\n"
               "  attnbench report results.json -o page.html\n"
               "  attnbench report results.json --format comment > comment.md\n"
               "  attnbench report results.json --format junit,bencher -o ci/\n"
               "  attnbench report cpu/*.json gpu/*.json --book papers.html --book papers.md\n"
               "\n"
               "A book has a chapter a suite; results of one suite on several machines stand "
               "side by side.");
           return [o, &global] { return report(*o, global); };
         },
     .summary = "finished results as a page, Markdown, CSV or what other tools read"});

}  // namespace

}  // namespace attnbench
