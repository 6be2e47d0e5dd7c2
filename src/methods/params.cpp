#include "methods/params.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/error.hpp"
#include "methods/problem.hpp"

namespace attnbench {

namespace {

const Value& lookup(const std::map<std::string, Value>& values, const std::string& name) {
  const auto it = values.find(name);
  if (it == values.end()) throw Error("parameter '" + name + "' was not declared by its method (a bug)");
  return it->second;
}

/// The problem's own value of what a parameter repeats; null when the problem does not set it.
Value problem_value(const Problem& p, const std::string& key) {
  const auto at = key.find('[');
  if (at != std::string::npos) {
    const std::string base = key.substr(0, at);
    const size_t i = static_cast<size_t>(key[at + 1] - '0');
    const std::vector<int64_t>& v = base == "grid" ? p.grid : p.size;
    if (i >= v.size()) return Value();
    if (key[at + 2] != ':') return Value(v[i]);
    int64_t product = 1;
    for (size_t k = i; k < v.size(); ++k) product *= v[k];
    return Value(product);
  }
  if (key == "head_dim")
    return p.head_dim ? Value(p.head_dim) : p.channels && p.heads ? Value(p.channels / p.heads) : Value();
  if (key == "kv_heads") return p.heads ? Value(p.kv_heads_or_heads()) : Value();
  if (key == "length") return p.tokens() ? Value(p.tokens()) : Value();
  if (key == "kv_length") return p.tokens() ? Value(p.kv_length_or_length()) : Value();
  const auto values = problem_values(p);
  const auto it = values.find(key);
  return it == values.end() ? Value() : it->second;
}

std::string range_text(const ParamSpec& s) {
  const auto text = [&s](double x) {
    return s.type == ParamSpec::Type::integer ? std::to_string(static_cast<int64_t>(x)) : Value(x).str();
  };
  if (s.min && s.max) return "between " + text(*s.min) + " and " + text(*s.max);
  if (s.min) return "at least " + text(*s.min);
  return "at most " + text(*s.max);
}

/// Checks one value against its specification; returns what is wrong, or empty, and the converted value.
std::string check(const ParamSpec& s, Value& v) {
  if (v.is_null()) return s.nullable ? "" : "a value is wanted, not null";
  const auto in_range = [&s](double x) { return !(s.min && x < *s.min) && !(s.max && x > *s.max); };
  switch (s.type) {
    case ParamSpec::Type::integer:
      if (v.is_string() && std::find(s.choices.begin(), s.choices.end(), v.as_string()) != s.choices.end())
        return "";
      if (!v.is_int()) {
        std::string words;
        for (const std::string& c : s.choices) words += " or " + c;
        return "a whole number" + words + " is wanted, not " + v.str();
      }
      if (!in_range(static_cast<double>(v.as_int()))) return range_text(s) + " is wanted, not " + v.str();
      return "";
    case ParamSpec::Type::number:
      if (!v.is_number() || std::isnan(v.as_double())) return "a number is wanted, not " + v.str();
      if (!in_range(v.as_double())) return range_text(s) + " is wanted, not " + v.str();
      v = Value(v.as_double());
      return "";
    case ParamSpec::Type::boolean:
      return v.is_bool() ? "" : "true or false is wanted, not " + v.str();
    case ParamSpec::Type::choice: {
      // A word that looks like a number: `budget: 64`.
      if (v.is_number()) v = Value(v.str());
      if (v.is_string() && std::find(s.choices.begin(), s.choices.end(), v.as_string()) != s.choices.end())
        return "";
      std::string all;
      for (const std::string& c : s.choices) all += (all.empty() ? "" : ", ") + c;
      const std::string near = v.is_string() ? nearest_word(v.as_string(), s.choices) : "";
      return "one of " + all + " is wanted, not " + v.str() +
             (near.empty() ? "" : "; did you mean '" + near + "'?");
    }
    case ParamSpec::Type::text:
      return v.is_string() ? "" : "a text is wanted, not " + v.str();
    case ParamSpec::Type::list:
      if (s.of_words) {
        std::string all;
        for (const std::string& c : s.choices) all += (all.empty() ? "" : ", ") + c;
        if (!v.is_list() || v.as_list().empty()) return "a list of " + all + " is wanted, not " + v.str();
        const Value::List& words = v.as_list();
        for (size_t i = 0; i < words.size(); ++i) {
          if (!words[i].is_string() ||
              std::find(s.choices.begin(), s.choices.end(), words[i].as_string()) == s.choices.end())
            return "a list of " + all + " is wanted, and " + words[i].str() + " is none of them";
          if (std::find(words.begin(), words.begin() + static_cast<int64_t>(i), words[i]) !=
              words.begin() + static_cast<int64_t>(i))
            return "a list without repetition is wanted, not " + v.str();
        }
        return "";
      }
      if (v.is_string() && std::find(s.choices.begin(), s.choices.end(), v.as_string()) != s.choices.end())
        return "";
      // A list whose default is one number may be one number: [Hs, Ws], or the side of a square.
      if (v.is_number() && s.default_value.is_number())
        return in_range(v.as_double()) ? "" : range_text(s) + " is wanted, not " + v.str();
      if (!v.is_list()) {
        std::string words;
        for (const std::string& c : s.choices) words += " or " + c;
        return "a list" + words + " is wanted, not " + v.str();
      }
      for (const Value& e : v.as_list()) {
        if (s.of_texts) {
          if (!e.is_string()) return "a list of texts is wanted, not " + v.str();
          continue;
        }
        if (s.flags) {
          if (!e.is_bool()) return "a list of true and false is wanted, not " + v.str();
          continue;
        }
        const Value::List one{e};
        for (const Value& x : s.nested&& e.is_list() ? e.as_list() : one) {
          if (!x.is_number())
            return std::string(s.nested ? "a list of numbers or of lists of numbers" : "a list of numbers") +
                   " is wanted, not " + v.str();
          if (!in_range(x.as_double())) return range_text(s) + " is wanted for every element, not " + x.str();
        }
      }
      return "";
  }
  return "";
}

}  // namespace

int64_t Params::integer(const std::string& name) const { return lookup(values_, name).as_int(); }
double Params::number(const std::string& name) const { return lookup(values_, name).as_double(); }
bool Params::boolean(const std::string& name) const { return lookup(values_, name).as_bool(); }
const std::string& Params::choice(const std::string& name) const { return lookup(values_, name).as_string(); }
const std::string& Params::text(const std::string& name) const { return lookup(values_, name).as_string(); }
const Value& Params::value(const std::string& name) const { return lookup(values_, name); }

namespace spec {
using Type = ParamSpec::Type;

ParamSpec param(std::string name, Type type, Value default_value, std::optional<double> min,
                std::optional<double> max, std::string meaning) {
  ParamSpec s;
  s.name = std::move(name);
  s.type = type;
  s.nullable = default_value.is_null();
  s.default_value = std::move(default_value);
  s.min = min, s.max = max;
  s.meaning = std::move(meaning);
  return s;
}
ParamSpec param(std::string name, Type type, Value default_value, std::optional<double> min,
                std::string meaning) {
  return param(std::move(name), type, std::move(default_value), min, {}, std::move(meaning));
}
ParamSpec param(std::string name, Type type, Value default_value, std::string meaning) {
  return param(std::move(name), type, std::move(default_value), {}, {}, std::move(meaning));
}
ParamSpec integer(std::string name, Value default_value, double min, std::string meaning,
                  std::string from_problem) {
  ParamSpec s = param(std::move(name), Type::integer, std::move(default_value), min, std::move(meaning));
  if (!from_problem.empty()) s.nullable = false, s.from_problem = std::move(from_problem);
  return s;
}
ParamSpec number(std::string name, Value default_value, double min, std::string meaning) {
  return param(std::move(name), Type::number, std::move(default_value), min, std::move(meaning));
}
ParamSpec number(std::string name, Value default_value, double min, double max, std::string meaning) {
  return param(std::move(name), Type::number, std::move(default_value), min, max, std::move(meaning));
}
ParamSpec share(std::string name, double default_value, std::string meaning) {
  return number(std::move(name), default_value, 0, 1, std::move(meaning));
}
ParamSpec boolean(std::string name, bool default_value, std::string meaning) {
  return param(std::move(name), Type::boolean, default_value, std::move(meaning));
}
ParamSpec list(std::string name, Value default_value, std::string meaning) {
  return param(std::move(name), Type::list, std::move(default_value), std::move(meaning));
}
ParamSpec choice(std::string name, std::vector<std::string> words, std::string meaning) {
  ParamSpec s = param(std::move(name), Type::choice, words.front(), std::move(meaning));
  s.choices = std::move(words);
  return s;
}

}  // namespace spec

Params resolve_params(const std::string& method_id, const std::vector<ParamSpec>& specs,
                      const std::map<std::string, Value>& given, const Problem& problem) {
  std::vector<std::string> names, errors;
  for (const ParamSpec& s : specs) names.push_back(s.name);
  for (const auto& [key, value] : given) {
    if (std::find(names.begin(), names.end(), key) != names.end()) continue;
    const std::string near = nearest_word(key, names);
    errors.push_back("method '" + method_id + "' has no parameter '" + key + "'" +
                     (near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
  Params params;
  for (const ParamSpec& s : specs) {
    const auto it = given.find(s.name);
    const Value from_problem = s.from_problem.empty() ? Value() : problem_value(problem, s.from_problem);
    Value v = it != given.end() ? it->second : !from_problem.is_null() ? from_problem : s.default_value;
    if (v.is_null() && it == given.end() && !s.nullable && !s.from_problem.empty()) {
      errors.push_back(method_id + "." + s.name + ": give it, or set problem." + s.from_problem);
      continue;
    }
    const std::string wrong = check(s, v);
    if (!wrong.empty()) {
      errors.push_back(method_id + "." + s.name + ": " + wrong);
      continue;
    }
    if (it != given.end() && !from_problem.is_null() && !(v == from_problem) &&
        !(v.is_number() && from_problem.is_number() && v.as_double() == from_problem.as_double()))
      errors.push_back(method_id + "." + s.name + ": " + v.str() + " contradicts problem." + s.from_problem +
                       " = " + from_problem.str());
    params.values_[s.name] = v;
  }
  if (!errors.empty()) {
    std::string all;
    for (const std::string& e : errors) all += (all.empty() ? "" : "\n") + e;
    throw UsageError(all);
  }
  return params;
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& words) {
  std::string best;
  // Up to a third of the word may differ: enough for typing slips, too little for unrelated words.
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& w : words) {
    // Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours cost 1 each.
    std::vector<size_t> before, last(w.size() + 1), row(w.size() + 1);
    std::iota(last.begin(), last.end(), size_t{0});
    for (size_t i = 1; i <= word.size(); ++i) {
      row[0] = i;
      for (size_t j = 1; j <= w.size(); ++j) {
        row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (word[i - 1] == w[j - 1] ? 0 : 1)});
        if (i > 1 && j > 1 && word[i - 1] == w[j - 2] && word[i - 2] == w[j - 1])
          row[j] = std::min(row[j], before[j - 2] + 1);
      }
      before = last;
      last = row;
    }
    if (last.back() < best_distance) best_distance = last.back(), best = w;
  }
  return best;
}

}  // namespace attnbench
