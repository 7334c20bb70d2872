// Captions a picture with the C API of ONNX Runtime: caption BUNDLE PICTURE.ppm
// c++ -std=c++17 caption.cpp -I HEADERS -L LIBRARY -lonnxruntime -o caption
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

static const OrtApi* ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);

static void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  std::exit(1);
}

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: caption BUNDLE PICTURE.ppm\n"), 2;
  std::ifstream file(arguments[2], std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255) return std::fputs("no PPM\n", stderr), 2;
  file.get();
  std::vector<char> pixels(width * height * 3);
  if (!file.read(pixels.data(), pixels.size())) return std::fputs("the picture is cut short\n", stderr), 2;

  OrtEnv* env;
  OrtSessionOptions* options;
  OrtSession* session;
  OrtMemoryInfo* memory;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "caption", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->CreateSession(env, (std::string(arguments[1]) + "/graphs/whole_text.onnx").c_str(), options, &session));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

  const int64_t shape[] = {1, height, width, 3};
  OrtValue *image, *text = nullptr;
  check(ort->CreateTensorWithDataAsOrtValue(memory, pixels.data(), pixels.size(), shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &image));
  const char *inputs[] = {"images"}, *outputs[] = {"texts"};
  check(ort->Run(session, nullptr, inputs, &image, 1, outputs, 1, &text));
  size_t length;
  check(ort->GetStringTensorElementLength(text, 0, &length));
  std::string caption(length, ' ');
  check(ort->GetStringTensorElement(text, length, 0, caption.data()));
  std::puts(caption.c_str());
}
