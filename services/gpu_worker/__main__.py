from services.gpu_worker.main import main

main()
