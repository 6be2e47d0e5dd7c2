// How much two circuits, sets of heads, have in common.
#include <algorithm>
#include <iterator>
#include <set>

#include "analysis/analysis.hpp"

namespace attnbench {

namespace {

using Heads = std::set<int64_t>;

Heads given(const Params& params, const char* name) {
  Heads s;
  for (const Value& v : params.value(name).as_list()) {
    if (!v.is_int())
      throw UsageError(std::string("circuit_overlap.") + name + ": " + v.str() + " is no head number");
    s.insert(v.as_int());
  }
  return s;
}

/// Rows (layer, head) of an output, as one number each.
Heads of_output(Context& ctx, const Tensor& t) {
  std::vector<int32_t> v(static_cast<size_t>(t.numel()));
  copy(ctx, t, Tensor::borrow(DeviceKind::cpu, DType::i32, t.shape(), v.data()));
  ctx.backend().synchronize();
  Heads s;
  for (size_t i = 0; i + 1 < v.size(); i += 2) s.insert((int64_t{v[i]} << 32) + v[i + 1]);
  return s;
}

class CircuitOverlap final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "circuit_overlap";
      i.title = "Overlap of two circuits";
      i.summary =
          "The share of heads that two circuits have in common: of the method's outputs circuit_1 and "
          "circuit_2, or of "
          "two lists of head numbers.";
      i.formula =
          "jaccard = |A and B| / |A or B|       the published definition: 25 shared of 29 and 28 heads are "
          "25/32\n"
          "of_first = |A and B| / |A|";
      i.unit = "share of heads";
      const auto list = [](const char* name, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.type = ParamSpec::Type::list;
        s.default_value = Value(Value::List{});
        s.min = 0;
        s.meaning = meaning;
        return s;
      };
      i.params = {list("circuit_a", "heads of the first circuit; empty with circuit_b: the method's own"),
                  list("circuit_b", "heads of the second circuit")};
      i.headline = {"jaccard", "shared", "union"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    Heads a = given(params, "circuit_a"), b = given(params, "circuit_b");
    AnalysisResult r;
    r.analysis = info().id;
    r.notes["source"] = "the given lists";
    if (a.empty() && b.empty()) {
      const TensorMap out = instance.outputs();
      const auto first = out.find("circuit_1"), second = out.find("circuit_2");
      if (first == out.end() || second == out.end())
        throw Unsupported("circuit_overlap: the method has no two circuits, and no lists are given");
      a = of_output(ctx, first->second);
      b = of_output(ctx, second->second);
      r.notes["source"] = "the method's circuits";
    }
    Heads both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::inserter(both, both.end()));
    const auto shared = static_cast<double>(both.size()),
               all = static_cast<double>(a.size() + b.size()) - shared;
    r.scalars["shared"] = shared;
    r.scalars["union"] = all;
    r.scalars["only_first"] = static_cast<double>(a.size()) - shared;
    r.scalars["only_second"] = static_cast<double>(b.size()) - shared;
    r.scalars["jaccard"] = all > 0 ? shared / all : 0;
    r.scalars["of_first"] = a.empty() ? 0 : shared / static_cast<double>(a.size());
    return r;
  }
};
ATTNBENCH_ANALYSIS(CircuitOverlap);

}  // namespace

}  // namespace attnbench
