// The part of bridgestan's C interface that its Python class calls, over Stan's model_base.
#include <stan/io/json/json_data.hpp>
#include <stan/math.hpp>
#include <stan/model/model_base.hpp>
#include <stan/services/util/create_rng.hpp>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

stan::model::model_base& new_model(stan::io::var_context&, unsigned int, std::ostream*);

namespace {
struct Model {
  stan::model::model_base* held;
  std::string names[4], unc_names;
  int sizes[4];
};
std::string joined(const std::vector<std::string>& names) {
  std::string all;
  for (const auto& name : names) all += (all.empty() ? "" : ",") + name;
  return all;
}
int failed(char** error, const std::exception& raised) {
  if (error) *error = strdup(raised.what());
  return -1;
}
int which(bool tp, bool gq) { return 2 * tp + gq; }
template <typename T>
T density(const Model* m, bool propto, bool jacobian, Eigen::Matrix<T, -1, 1>& x) {
  if (propto) return jacobian ? m->held->log_prob_propto_jacobian(x, nullptr) : m->held->log_prob_propto(x, nullptr);
  return jacobian ? m->held->log_prob_jacobian(x, nullptr) : m->held->log_prob(x, nullptr);
}
Eigen::VectorXd read(const double* x, int n) { return Eigen::Map<const Eigen::VectorXd>(x, n); }
}  // namespace

extern "C" {
int bs_major_version = 2, bs_minor_version = 9, bs_patch_version = 0;
void bs_free_error_msg(char* error) { free(error); }
int bs_set_print_callback(void*, char**) { return 0; }
Model* bs_model_construct(const char* data, unsigned int seed, char** error) {
  try {
    std::istringstream text(*data ? data : "{}");
    stan::json::json_data context(text);
    auto* m = new Model{&new_model(context, seed, nullptr)};
    for (int i = 0; i < 4; i++) {
      std::vector<std::string> names;
      m->held->constrained_param_names(names, i / 2, i % 2);
      m->names[i] = joined(names);
      m->sizes[i] = names.size();
    }
    std::vector<std::string> names;
    m->held->unconstrained_param_names(names, false, false);
    m->unc_names = joined(names);
    return m;
  } catch (const std::exception& raised) { failed(error, raised); return nullptr; }
}
void bs_model_destruct(Model* m) { delete m->held; delete m; }
const char* bs_name(const Model*) { return "model"; }
const char* bs_model_info(const Model*) { return ""; }
int bs_param_num(const Model* m, bool tp, bool gq) { return m->sizes[which(tp, gq)]; }
int bs_param_unc_num(const Model* m) { return m->held->num_params_r(); }
const char* bs_param_names(const Model* m, bool tp, bool gq) { return m->names[which(tp, gq)].c_str(); }
const char* bs_param_unc_names(const Model* m) { return m->unc_names.c_str(); }
void* bs_rng_construct(unsigned int seed, char**) { return new stan::rng_t(stan::services::util::create_rng(seed, 0)); }
void bs_rng_destruct(void* rng) { delete static_cast<stan::rng_t*>(rng); }
int bs_param_constrain(const Model* m, bool tp, bool gq, const double* z, double* x, void* rng, char** error) {
  try {
    stan::rng_t none = stan::services::util::create_rng(0, 0);
    Eigen::VectorXd unc = read(z, bs_param_unc_num(m)), found;
    m->held->write_array(rng ? *static_cast<stan::rng_t*>(rng) : none, unc, found, tp, gq, nullptr);
    Eigen::VectorXd::Map(x, found.size()) = found;
    return 0;
  } catch (const std::exception& raised) { return failed(error, raised); }
}
int bs_param_unconstrain(const Model* m, const double* x, double* z, char** error) {
  try {
    Eigen::VectorXd found;
    m->held->unconstrain_array(read(x, m->sizes[0]), found, nullptr);
    Eigen::VectorXd::Map(z, found.size()) = found;
    return 0;
  } catch (const std::exception& raised) { return failed(error, raised); }
}
int bs_param_unconstrain_json(const Model* m, const char* text, double* z, char** error) {
  try {
    std::istringstream stream(text);
    stan::json::json_data context(stream);
    Eigen::VectorXd found;
    m->held->transform_inits(context, found, nullptr);
    Eigen::VectorXd::Map(z, found.size()) = found;
    return 0;
  } catch (const std::exception& raised) { return failed(error, raised); }
}
int bs_param_initialize() { return -1; }
int bs_log_density(const Model* m, bool propto, bool jacobian, const double* z, double* value, char** error) {
  try {
    if (propto) {
      stan::math::nested_rev_autodiff nested;
      Eigen::Matrix<stan::math::var, -1, 1> x = read(z, bs_param_unc_num(m)).cast<stan::math::var>();
      *value = density(m, propto, jacobian, x).val();
    } else {
      Eigen::VectorXd x = read(z, bs_param_unc_num(m));
      *value = density(m, propto, jacobian, x);
    }
    return 0;
  } catch (const std::exception& raised) { return failed(error, raised); }
}
int bs_log_density_gradient(const Model* m, bool propto, bool jacobian, const double* z, double* value, double* grad, char** error) {
  try {
    Eigen::VectorXd x = read(z, bs_param_unc_num(m)), found;
    stan::math::gradient([&](auto& y) { return density(m, propto, jacobian, const_cast<Eigen::Matrix<stan::math::var, -1, 1>&>(y)); }, x, *value, found);
    Eigen::VectorXd::Map(grad, found.size()) = found;
    return 0;
  } catch (const std::exception& raised) { return failed(error, raised); }
}
int bs_log_density_hessian() { return -1; }
int bs_log_density_hessian_vector_product() { return -1; }
}
