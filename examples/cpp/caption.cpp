// Captions a picture with the C API of ONNX Runtime, through its C++ header: caption BUNDLE PICTURE.ppm
// c++ -std=c++17 caption.cpp -I HEADERS -L LIBRARY -lonnxruntime -o caption
#include <onnxruntime_cxx_api.h>

#include <fstream>
#include <iostream>
#include <string>

int main(int count, char** arguments) try {
  if (count != 3) return std::cerr << "usage: caption BUNDLE PICTURE.ppm\n", 2;
  std::ifstream file(arguments[2], std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255) return std::cerr << "no PPM\n", 2;
  file.get();
  std::string pixels(width * height * 3, ' ');
  if (!file.read(pixels.data(), pixels.size())) return std::cerr << "the picture is cut short\n", 2;

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "caption");
  Ort::Session session(env, (std::string(arguments[1]) + "/graphs/whole_text.onnx").c_str(), Ort::SessionOptions());
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const int64_t shape[] = {1, height, width, 3};
  auto image = Ort::Value::CreateTensor(memory, pixels.data(), pixels.size(), shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
  const char *inputs[] = {"images"}, *outputs[] = {"texts"};
  auto texts = session.Run(Ort::RunOptions(), inputs, &image, 1, outputs, 1);
  std::cout << texts[0].GetStringTensorElement(0) << "\n";
} catch (const Ort::Exception& error) {
  return std::cerr << error.what() << "\n", 1;
}
